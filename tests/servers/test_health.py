"""Lives, ready, and every figure."""

import asyncio
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from aula.core.clock import FakeClock
from aula.core.errors import BackendError, OverloadError
from aula.core.telemetry import METRICS
from aula.core.types import Capability
from aula.servers.health import Canaries
from tests.servers.doors import CAPABILITIES, Models, runtime_of, served


async def test_every_capability_is_tried_by_a_real_run_now_and_then() -> None:
    clock, models = FakeClock(), Models()
    async with runtime_of(models, clock) as runtime:
        canaries = Canaries(runtime, 10.0)
        first, same = await asyncio.gather(canaries.report(), canaries.report())
        assert set(first) == set(CAPABILITIES)
        assert all(one.ok for one in first.values())
        assert same is first, "who asks meanwhile gets the same trial"
        tried = len(models.contexts)
        clock.advance(9.9)
        assert await canaries.report() is first
        assert len(models.contexts) == tried
        models.failure = BackendError("gone", next_step="mend it")
        clock.advance(0.1)
        broken = await canaries.report()
        assert not any(one.ok for one in broken.values())
        assert "gone" in (broken[Capability.EMBED].error or "")
    assert models.open == models.closed


async def test_a_busy_server_is_well() -> None:
    clock, models = FakeClock(), Models()
    async with runtime_of(models, clock) as runtime:
        canaries = Canaries(runtime, 10.0)
        await canaries.report()
        models.failure = OverloadError("full", reason="predicted_late", retry_after_s=1.0, next_step="wait")
        clock.advance(10.0)
        tried = (await canaries.report())[Capability.EMBED]
    assert (tried.ok, tried.busy) == (True, True)


async def test_a_broken_capability_is_not_ready(tmp_path: Path) -> None:
    async with served(tmp_path) as door, httpx.AsyncClient(base_url=door.url) as client:
        door.models.failure = BackendError("gone", next_step="mend it")
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert answer.json()["capabilities"]["speak"]["ok"] is False
        assert (await client.get("/livez")).status_code == 200


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    async with served(tmp_path) as door, httpx.AsyncClient(base_url=door.url) as client:
        await client.post("/v1/embeddings", json={"model": "aula-embed", "input": "x"})
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert set(families) == {metric.name.removesuffix("_total") for metric in METRICS}
    (counted,) = families["aula_http_requests"].samples
    assert (counted.labels, counted.value) == ({"door": "openai", "status": "2xx"}, 1.0)
    (connections,) = families["aula_connections"].samples
    assert connections.value >= 1
