"""Alerts and dashboard speak of figures that there are, and every alert is explained."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aula.core.telemetry import METRICS, Kind

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "src" / "aula" / "deploy" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
QUERIES = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]
BY_NAME = {metric.name: metric for metric in METRICS}


def _metric(series: str) -> str:
    """A histogram is asked for by its buckets, sum or count."""
    bare = re.sub(r"_(bucket|sum|count)$", "", series)
    return bare if bare in BY_NAME and BY_NAME[bare].kind is Kind.HISTOGRAM else series


@pytest.mark.parametrize("query", QUERIES)
def test_queries_name_metrics_and_labels_that_there_are(query: str) -> None:
    used = [_metric(name) for name in re.findall(r"\baula_\w+", query)]
    assert used
    assert [name for name in used if name not in BY_NAME] == []
    known = {label for name in used for label in BY_NAME[name].labels} | {"le"}
    named = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        named |= {label.strip() for label in group.split(",")}
    assert named <= known, f"{named - known} in {query}"
    assert query.count("(") == query.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {_metric(name) for query in QUERIES for name in re.findall(r"\baula_\w+", query)}
    assert shown == set(BY_NAME)


def test_every_alert_is_explained_with_what_to_do() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (Aula\w+)\n(.+?)(?=^## |\Z)", text, re.S | re.M))
    assert list(sections) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert len(sections[rule["alert"]]) > 100
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in rule["expr"] or any(
                label in BY_NAME[_metric(name)].labels for name in re.findall(r"\baula_\w+", rule["expr"])
            )
