import re

from aula.engine.targets import PRECISIONS, TARGETS


def test_the_table_says_what_each_kind_of_machine_is() -> None:
    assert list(TARGETS) == ["cpu", "sm75", "sm86", "sm89", "sm90"]
    assert [target.name for target in TARGETS.values() if not target.is_gpu] == ["cpu"]
    for target in TARGETS.values():
        assert set(target.precisions) <= set(PRECISIONS)
        assert target.precisions[0] == "fp32"
        if target.capability is not None:
            assert target.name == "sm" + target.capability.replace(".", "")
            assert target.products
            # What Kubernetes takes as a label's value.
            assert all(re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", value) for value in target.selectors)
    assert "bf16" not in TARGETS["sm75"].precisions
    assert "fp16" not in TARGETS["cpu"].precisions
