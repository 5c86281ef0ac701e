"""Bundles for one target each, made by changing what one that was really built says of itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.core.errors import BundleError, EngineError, ModelNotFoundError, StorageError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import Device, Gate, sealed
from aula.engine.merge import find_bundles, merge
from aula.engine.recipe import Origin
from aula.engine.store import Store
from aula.engine.targets import read_targets
from aula.engine.verdicts import TargetVerdict, read_verdict, verdict_written, write_verdict
from tests.engine.toy import toy_model


@pytest.fixture
def cpu(tmp_path: Path) -> Bundle:
    return build(toy_model(tmp_path), Store(tmp_path / "cpu"), BuildOptions(threads=1))


def _key(place: int) -> str:
    return f"toy-{place:016x}"


def _as(
    bundle: Bundle, folder: Path, target: str, *, key: str, engine: Any = None, part: Any = None, **changes: Any
) -> Bundle:
    """The bundle as if it had been built for another target, in a store of its own, with other claims."""
    known = bundle.part()
    other = replace(bundle.engine(), machine=f"a machine with {target}", **(engine or {}))
    manifest = replace(
        bundle.manifest,
        **({"key": key, "parts": {"model": replace(known, engines={target: other}, **(part or {}))}} | changes),
    )
    store = Store(folder)
    store.files.mkdir(parents=True, exist_ok=True)
    for file in other.files:
        (store.files / file.name).write_bytes((bundle.files / file.name).read_bytes())
    return store.publish(sealed(manifest))


def test_one_bundle_for_all_targets_opens_and_is_the_same_again(cpu: Bundle, tmp_path: Path) -> None:
    t4 = _as(cpu, tmp_path / "t4", "sm75", key=_key(1))
    l4 = _as(cpu, tmp_path / "l4", "sm89", key=_key(2))
    store = Store(tmp_path / "merged")
    merged = merge([l4, cpu, t4], store, require=("sm75", "sm89", "cpu"))
    assert list(merged.part().engines) == ["cpu", "sm75", "sm89"]
    assert merged.engine(target="sm89") == l4.engine(target="sm89")
    assert store.open("toy") == merged
    with merged.open() as session:
        np.testing.assert_allclose(session.run({"x": np.ones((1, 3), np.float32)})["y"], [[6, 9]])
    assert merge([t4, l4, cpu, t4], Store(tmp_path / "again")).manifest == merged.manifest
    assert merged.manifest.key not in (cpu.manifest.key, _key(1), _key(2))
    assert merge([cpu], store).manifest == cpu.manifest
    assert list(store.folder.glob(".draft-*")) == []


def test_several_targets_may_come_in_one_bundle_but_only_once(cpu: Bundle, tmp_path: Path) -> None:
    t4 = _as(cpu, tmp_path / "t4", "sm75", key=_key(1))
    both = merge([cpu, t4], Store(tmp_path / "both"))
    assert merge([both, t4], Store(tmp_path / "all")).manifest.targets == ["cpu", "sm75"]
    other = _as(cpu, tmp_path / "other", "sm75", key=_key(2), engine={"threads": 64})
    with pytest.raises(BundleError, match=f"{_key(1)} and {_key(2)} both have an engine for sm75"):
        merge([t4, other], Store(tmp_path / "no"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "other"}, "the model toy and other|the model other and toy"),
        ({"seeded": True}, "weights (real and made up|made up and real)"),
        ({"origin": Origin("school/toy", "abc")}, "the origin .*school/toy at abc"),
        ({"part": {"sources": {"weights.bin": "0" * 64}}}, "other files: weights.bin of part model"),
        ({"part": {"sources": {}}}, "weights.bin: .*absent"),
        ({"engine": {"precision": "bf16"}, "lower": True}, "bf16 on .*knows of none"),
        ({"engine": {"precision": "bf16", "gate": Gate("accuracy", 0.9, 9, "d", 0.01)}, "lower": True}, "no metric"),
        (
            {
                "engine": {"precision": "bf16", "gate": Gate("accuracy", 0.9, 9, "d", 0.01)},
                "lower": True,
                "metric": 0.8,
            },
            "drops by 10.00 points",
        ),
        ({"engine": {}, "lower": True, "rejected": "too slow"}, "did not pass its gate: too slow"),
    ],
)
def test_what_is_not_of_one_model_or_did_not_pass_is_refused(
    cpu: Bundle, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    if changes.pop("lower", False):
        precision = changes["engine"].get("precision", "fp32")
        candidate = replace(
            cpu.engine().chosen,
            precision=precision,
            metric=changes.pop("metric", None),
            rejected=changes.pop("rejected", None),
        )
        changes["engine"]["candidates"] = (candidate,)
    other = _as(cpu, tmp_path / "other", "sm75", key=_key(1), **changes)
    store = Store(tmp_path / "merged")
    with pytest.raises(BundleError, match=fault) as failure:
        merge([cpu, other], store)
    assert _key(1) in failure.value.what
    assert failure.value.next_step
    assert not store.folder.exists()


def test_fp16_of_a_gpu_is_held_to_numbers_where_no_task_judges(cpu: Bundle, tmp_path: Path) -> None:
    device = Device("Tesla T4", "7.5", "12.8", "exact", False)
    candidate = replace(cpu.engine().chosen, precision="fp16")
    claims: dict[str, Any] = {"precision": "fp16", "device": device, "candidates": (candidate,)}
    t4 = _as(cpu, tmp_path / "t4", "sm75", key=_key(1), engine=claims)
    assert merge([cpu, t4], Store(tmp_path / "merged")).manifest.targets == ["cpu", "sm75"]
    unmeasured = claims | {"candidates": (replace(candidate, relative_error=None),)}
    other = _as(cpu, tmp_path / "other", "sm75", key=_key(2), engine=unmeasured)
    with pytest.raises(BundleError, match=r"fp16 on .*knows of none"):
        merge([cpu, other], Store(tmp_path / "no"))


def test_other_parts_are_refused(cpu: Bundle, tmp_path: Path) -> None:
    part = cpu.part()
    pair = _as(cpu, tmp_path / "pair", "cpu", key=_key(1), parts={"model": part, "decoder": part})
    with pytest.raises(BundleError, match=r"parts (decoder, model and model|model and decoder, model)"):
        merge([cpu, pair], Store(tmp_path / "merged"))


def test_a_target_that_is_required_and_missing_is_named(cpu: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="sm75, sm90 is asked for") as failure:
        merge([cpu], Store(tmp_path / "merged"), require=("sm90", "cpu", "sm75"))
    assert failure.value.next_step.endswith("aula build MODEL --target sm75")
    with pytest.raises(BundleError, match="no bundle to merge"):
        merge([], Store(tmp_path / "merged"))


def test_damage_is_found_before_anything_is_written(cpu: Bundle, tmp_path: Path) -> None:
    t4 = _as(cpu, tmp_path / "t4", "sm75", key=_key(1))
    path = t4.model_file(target="sm75")
    path.write_bytes(bytes(path.stat().st_size))
    store = Store(tmp_path / "merged")
    with pytest.raises(VerificationError, match="has changed"):
        merge([cpu, t4], store)
    assert not store.folder.exists()
    (Store(tmp_path / "t4").bundles / f"{_key(1)}.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be trusted"):
        find_bundles([str(tmp_path / "t4")], (), store, tmp_path)


def test_bundles_are_found_by_key_by_name_and_in_other_stores(cpu: Bundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "cpu")
    t4 = _as(cpu, tmp_path / "t4", "sm75", key=_key(1))
    assert find_bundles(["toy", cpu.manifest.key], (), store, tmp_path) == (cpu, cpu)
    assert find_bundles([str(tmp_path / "t4"), f"file://{tmp_path}/t4"], (), store, tmp_path) == (t4, t4)
    _as(cpu, tmp_path / "t4", "sm89", key=_key(2))
    with pytest.raises(BundleError, match="holds 2 bundles") as failure:
        find_bundles([str(tmp_path / "t4")], (), store, tmp_path)
    assert failure.value.available == (_key(1), _key(2))
    (tmp_path / "empty").mkdir()
    for place in (str(tmp_path / "empty"), "nothing"):
        with pytest.raises(ModelNotFoundError):
            find_bundles([place], (), store, tmp_path)


def test_verdicts_name_bundles_and_a_bad_one_refuses_all(cpu: Bundle, tmp_path: Path) -> None:
    store, key = Store(tmp_path / "cpu"), cpu.manifest.key
    good = TargetVerdict("toy", "cpu", True, bundle=key)
    assert find_bundles([], [good], store, tmp_path) == (cpu,)
    assert find_bundles([key], [good], store, tmp_path) == (cpu,)
    bad = TargetVerdict("toy", "sm75", False, "the metric drops by 3.00 points")
    with pytest.raises(BundleError, match=r"1 of 2 builds failed \(toy for sm75: the metric drops.*passed: cpu"):
        find_bundles(["no-such-bundle"], [good, bad], store, tmp_path)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_verdict_is_written_whatever_ends_the_build(cpu: Bundle, tmp_path: Path, scheme: str) -> None:
    place = f"{scheme}{tmp_path}/verdicts/cpu.json"
    with pytest.raises(StorageError, match="is not there"):
        read_verdict(place)
    with verdict_written(place, "toy", "cpu") as passed:
        passed(cpu)
    assert read_verdict(place) == TargetVerdict("toy", "cpu", True, "", cpu.manifest.key)
    for error, reason in (
        (EngineError("it is wrong", next_step="mend it"), "it is wrong"),
        (KeyboardInterrupt(), "the build was interrupted"),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect"),
    ):
        with pytest.raises(type(error)), verdict_written(place, "toy", "cpu"):
            raise error
        assert read_verdict(place) == TargetVerdict("toy", "cpu", False, reason)
    with verdict_written(None, "toy", "cpu"):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"model": "m", "target": "t", "passed": 1}', b"[" * 100_000]
)
def test_what_is_no_verdict_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "verdict.json").write_bytes(content)
    with pytest.raises(BundleError, match="is no verdict"):
        read_verdict(str(tmp_path / "verdict.json"))
    with pytest.raises(StorageError):
        read_verdict(str(tmp_path))
    with pytest.raises(StorageError):
        write_verdict("nothing://x/y", TargetVerdict("toy", "cpu", True))


def test_targets_are_read_from_one_word() -> None:
    assert read_targets("sm89, cpu,sm75,cpu") == ("cpu", "sm75", "sm89")
    for text in ("", ",", "sm75,sm13"):
        with pytest.raises(EngineError, match="target") as failure:
            read_targets(text)
        assert "sm75" in failure.value.available
