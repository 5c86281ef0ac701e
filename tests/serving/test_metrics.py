"""What the metrics say is what callers saw."""

import re

from aula.core.clock import FakeClock
from aula.core.errors import BackendError
from aula.core.telemetry import (
    CONNECTIONS,
    LATE,
    LOADS,
    METRICS,
    REFUSALS,
    REQUESTS,
    RUNG_CHANGES,
    SERVED,
    TASK_SECONDS,
    Kind,
)
from aula.core.types import Capability, Context
from aula.runtime import Rules
from aula.scheduling.admission import Quota
from tests.serving.hand import House, by_hand, rung, runtime, start, work

EMBED = Capability.EMBED


async def test_counters_equal_what_callers_saw() -> None:
    with by_hand():
        clock = FakeClock()
        best, second = House(clock), House(clock)
        best.load_failure = BackendError("absent", next_step="none")
        rules = Rules({"poor": Quota(rate=1.0, burst=1)})
        running = runtime(rung("best", best), rung("second", second), clock=clock, rules=rules)
        contexts = [Context(tenant="poor"), Context(tenant="poor"), Context(language="zh"), Context(deadline=0.5)]
        tasks = [start(running, EMBED, ["a"], context) for context in contexts]
        tasks.append(start(running, EMBED, ["raise"], Context()))
        second.takes_s = 0.3
        await work()
        assert [task.exception() is None for task in tasks] == [True, False, False, True, False]
        telemetry = running.telemetry
        told = running.statistics()
        assert telemetry.value(REQUESTS, EMBED, "answered") == told.answered == 2
        assert telemetry.value(REQUESTS, EMBED, "refused") == told.refused == 2
        assert telemetry.value(REQUESTS, EMBED, "failed") == told.failed == 1
        assert [telemetry.value(REFUSALS, reason) for reason in ("rate", "language")] == [1, 1]
        assert telemetry.value(LOADS, EMBED, "best", "failed") == 1
        assert telemetry.value(LOADS, EMBED, "second", "ok") == 1
        assert telemetry.value(SERVED, EMBED, "second", "out_of_order") == 2
        assert telemetry.value(RUNG_CHANGES, EMBED, "best", "load") == 1
        assert telemetry.count(TASK_SECONDS, "embed") == 2
        assert telemetry.value(LATE, "embed") == 1
        text = await running.metrics()
        assert 'aula_breaker_open{capability="embed",rung="best"} 1' in text
        assert 'aula_tenant_share{tenant="poor"}' in text
        assert "aula_requests_in_flight 0" in text
        assert 'aula_queue_depth{tier="question"} 0' in text


async def test_every_gauge_is_written_when_somebody_looks() -> None:
    with by_hand():
        clock = FakeClock()
        running = runtime(rung("best", House(clock)), clock=clock)
        task = start(running, EMBED, ["a"], Context())
        await work()
        await task
        clock.advance(0.0)
        text = await running.metrics()
        for metric in METRICS:
            if metric.kind is Kind.GAUGE and metric.labels != ("tenant",) and metric is not CONNECTIONS:  # the doors'
                assert re.search(rf"^{metric.name}[{{ ]", text, re.M), metric.name
