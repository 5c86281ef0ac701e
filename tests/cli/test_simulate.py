import json

from tests.cli.running import Run


def test_the_command_prints_a_table_or_one_object(run: Run) -> None:
    shown = run("simulate", "steady", "--classes", "14")
    assert shown.code == 0, shown.err
    assert "question" in shown.out
    assert "and 2 more" in shown.out
    told = json.loads(run("simulate", "steady", "--json").out)
    assert {"goodput_ratio", "answered", "refused", "late", "p50_ms", "p99_ms", "tenants", "tiers"} <= told.keys()
    assert run("simulate", "flood").code == 2
