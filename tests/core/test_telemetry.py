import re

import pytest

from aula.core.telemetry import DRAFTS, IN_FLIGHT, METRICS, REQUEST_SECONDS, REQUESTS, Kind, Metric, Telemetry


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_custom_and_are_explained(metric: Metric) -> None:
    assert re.fullmatch(r"aula_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER) or metric.name == "aula_memory_total_bytes"
    assert bool(metric.edges) == (metric.kind is Kind.HISTOGRAM)
    assert metric.help


def test_the_text_is_prometheus_format() -> None:
    telemetry = Telemetry()
    telemetry.add(REQUESTS, "embed", "answered", by=2)
    telemetry.set(IN_FLIGHT, to=3)
    telemetry.add(DRAFTS, 'a "quoted"\nline\\')
    for seconds in (0.0005, 0.05, 0.07, 1e9):
        telemetry.observe(REQUEST_SECONDS, seconds, "embed", "question")
    lines = telemetry.text().splitlines()
    assert 'aula_requests_total{capability="embed",result="answered"} 2' in lines
    assert "aula_requests_in_flight 3" in lines
    assert 'aula_drafts_total{result="a \\"quoted\\"\\nline\\\\"} 1' in lines
    assert 'aula_request_seconds_bucket{capability="embed",tier="question",le="0.001"} 1' in lines
    assert 'aula_request_seconds_bucket{capability="embed",tier="question",le="0.1"} 3' in lines
    assert 'aula_request_seconds_bucket{capability="embed",tier="question",le="+Inf"} 4' in lines
    assert 'aula_request_seconds_count{capability="embed",tier="question"} 4' in lines
    sample = re.compile(r'# (HELP|TYPE) .+|aula_\w+(\{(\w+="(\\.|[^"\\])*",?)+\})? [0-9.e+-]+')
    assert [line for line in lines if not sample.fullmatch(line)] == []


def test_each_family_is_declared_once() -> None:
    names = re.findall(r"# TYPE (\w+)", Telemetry().text())
    assert names == [metric.name for metric in METRICS]
