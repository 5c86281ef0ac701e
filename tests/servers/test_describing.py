"""The document says what the server does: schemathesis makes requests of it and reads the answers by it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS

from aula.servers import health, kserve, openai, realtime
from aula.servers.callers import DEADLINE_HEADER
from aula.servers.describing import document
from aula.servers.kserve import messages
from aula.servers.kserve import operations as kserve_operations
from tests.servers.background import InBackground
from tests.servers.kserve.serving import TWICE, toy_rung, twice

OPERATIONS = (*health.OPERATIONS, *openai.OPERATIONS, *realtime.OPERATIONS, *kserve.OPERATIONS)
EXAMPLES = 30
"""Requests for each operation and each mode."""
MODELS = {
    "/v1/chat/completions": "aula",
    "/v1/embeddings": "aula-embed",
    "/v1/audio/speech": "tts-1",
    "/v1/audio/transcriptions": "whisper-1",
}
NAMES = {"model": TWICE.name, "version": TWICE.version}
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "negative_data_rejection",
)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InBackground]:
    with InBackground(tmp_path_factory.mktemp("home"), engines=[toy_rung(TWICE, twice)]) as running:
        yield running


async def _fetch(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        return await client.get(path)


def test_the_document_is_served_and_is_openapi(door: InBackground) -> None:
    told = asyncio.run(_fetch(door.url, "/openapi.json")).json()
    assert told == document(OPERATIONS)
    assert {"/v1/chat/completions", "/readyz", "/v1/audio/transcriptions"} <= set(told["paths"])
    form = told["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "model"]


def test_the_page_needs_nothing_from_elsewhere(door: InBackground) -> None:
    answer = asyncio.run(_fetch(door.url, "/docs"))
    assert answer.headers["content-type"].startswith("text/html")
    for one in OPERATIONS:
        assert one.path in answer.text
    assert "<script" not in answer.text
    assert "http://" not in answer.text.replace(door.url, "").replace(door.url.replace("127.0.0.1", "localhost"), "")
    assert "https://" not in answer.text


@pytest.mark.parametrize("name", ["InferRequest", "InputTensor"])
def test_tensors_are_described_as_they_are_read(name: str) -> None:
    shown, read = getattr(kserve_operations, name), getattr(messages, name)
    assert shown.__struct_fields__ == read.__struct_fields__
    required = [[field.required for field in msgspec.structs.fields(one)] for one in (shown, read)]
    assert required[0] == required[1]


_LAWFUL, _BROKEN = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        *((one, _LAWFUL) for one in OPERATIONS),
        *((one, _BROKEN) for one in OPERATIONS if (one.body or one.form) and "{version}" not in one.path),
    ],
    ids=lambda one: one.value if isinstance(one, schemathesis.GenerationMode) else f"{one.method} {one.path}",
)
def test_every_operation_answers_as_it_says(door: InBackground, operation: Any, mode: Any) -> None:
    schema = schemathesis.openapi.from_dict(document(OPERATIONS))
    schema.config.update(base_url=door.url)
    described = schema[operation.path][operation.method]
    checks = [CHECKS.get_one(name) for name in _CHECKS]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described.as_strategy(generation_mode=mode))
    def calls(case: Any) -> None:
        if case.headers:
            case.headers.pop(DEADLINE_HEADER, None)  # what nobody could meet is rightly a 503 or a 504
        if mode is _LAWFUL and isinstance(case.body, dict):
            if operation.path in MODELS:
                case.body["model"] = MODELS[operation.path]  # a random one is a 404, and tells nothing else
            case.body.pop("session", None)  # an object whose fields are the protocol's own
        if mode is _LAWFUL and "{model}" in operation.path and operation.path.startswith("/v2"):
            case.path_parameters |= {name: NAMES[name] for name in case.path_parameters}
        case.call_and_validate(checks=checks, timeout=20)

    calls()
