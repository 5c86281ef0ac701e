"""/openapi.json and /docs: made from the records that requests are decoded into, so that they cannot say anything else.

A door that wants to be described exports `OPERATIONS`. The page needs no script and nothing from the network.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

import aula
from aula.servers.callers import ANYTHING, DEADLINE_HEADER, TENANT_HEADER, TENANT_PATTERN, TIER_HEADER, TIERS

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """One way to be answered: a record, or another media type. `bytes` is what is no text; no media type, no body."""

    media_type: str = JSON
    kind: Any = str
    what: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """`ability` None: without a key. `fault` is the record of what goes wrong. `example` is a line for a shell."""

    method: str
    path: str
    summary: str
    ability: str | None
    answers: Sequence[Answer]
    body: Any = None
    form: Any = None
    file: str | None = None
    fault: Any = None
    path_parameters: Mapping[str, str] = field(default_factory=dict)
    unwell: Answer | None = None
    """What comes with 503, where that is no fault."""
    example: str = ""
    has_deadline: bool = True
    """Whether the header for one is read; a protocol may have a way of its own."""


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds = list(dict.fromkeys(kind for one in operations for kind in _kinds(one)))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aula",
            "version": aula.__version__,
            "description": "A classroom's assistant and its models. Requests are OpenAI's; extensions say so.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "aula key create CLASS"}},
        },
    }


def _kinds(one: Operation) -> Iterable[Any]:
    answers = [answer.kind for answer in one.answers if answer.kind is not bytes]
    unwell = [one.unwell.kind] if one.unwell and one.unwell.kind is not bytes else []
    return [kind for kind in (one.body, one.form, one.fault, *answers, *unwell) if kind is not None]


def _described(one: Operation, schema_of: Mapping[Any, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    def content(answers: Iterable[Answer]) -> dict[str, Any]:
        ways: dict[str, list[Any]] = {}
        for answer in answers:
            if not answer.media_type:
                continue
            ways.setdefault(answer.media_type, []).append({} if answer.kind is bytes else schema_of[answer.kind])
        return {media: {"schema": some[0] if len(some) == 1 else {"anyOf": some}} for media, some in ways.items()}

    told: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{one.path.title().translate(_NAME)}",
        "summary": one.summary,
        "responses": {"200": {"description": "answered", "content": content(one.answers)}},
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": what}
            for name, what in one.path_parameters.items()
        ],
    }
    if one.ability is not None:
        told["security"] = [{"key": []}, {}]
        needed = "" if one.ability == ANYTHING else f" with the ability {one.ability!r}"
        told["description"] = f"Needs a key{needed} where the server has keys."
        told["parameters"] += [header for header in _HEADERS if one.has_deadline or header["name"] != DEADLINE_HEADER]
    if one.fault is not None:
        fault = {JSON: {"schema": schema_of[one.fault]}}
        told["responses"]["4XX"] = {"description": "the request cannot be answered", "content": fault}
        told["responses"]["5XX"] = {"description": "the server cannot answer now", "content": fault}
    if one.unwell is not None:
        told["responses"]["503"] = {"description": one.unwell.what, "content": content([one.unwell])}
    if one.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[one.body]}}}
    if one.form is not None:
        told["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _form(schema_of[one.form], components, one.file)}},
        }
    return told


def _form(schema: Mapping[str, str], components: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    made = dict(components[schema["$ref"].rpartition("/")[2]])
    if file is not None:
        made["properties"] = {file: {"type": "string", "format": "binary"}, **made["properties"]}
        made["required"] = [file, *made.get("required", ())]
    return made


_CODE, _AS_CODE = re.compile(r"`(.+?)`"), r"<code>\1</code>"
_NAME = str.maketrans({"/": "_", "{": "", "}": "", ".": "_", "-": "_"})
_HEADERS = [
    {
        "name": TIER_HEADER,
        "in": "header",
        "schema": {"type": "string", "enum": list(TIERS)},
        "description": "a tier that is no more urgent than the key's",
    },
    {
        "name": DEADLINE_HEADER,
        "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
        "description": "milliseconds from now; what could not be in time is refused at once",
    },
    {
        "name": TENANT_HEADER,
        "in": "header",
        "schema": {"type": "string", "pattern": TENANT_PATTERN},
        "description": "the class that is served, where the key may speak for others",
    },
]


def page(told: Mapping[str, Any], operations: Sequence[Operation], base: str) -> str:
    """The document for people: what there is, each field, and a line to try it with."""
    parts = []
    schemas = told["components"]["schemas"]
    for one in operations:
        described = told["paths"][one.path][one.method.lower()]
        parts.append(f"<section><h2><code>{one.method}</code> {escape(one.path)}</h2><p>{escape(one.summary)}</p>")
        if "description" in described:
            parts.append(f"<p>{escape(described['description'])}</p>")
        body = described.get("requestBody", {}).get("content", {})
        for media_type, entry in body.items():
            parts.append(f"<h3>{escape(media_type)}</h3>{_table(_resolved(entry['schema'], schemas), schemas)}")
        media_types = dict.fromkeys(answer.media_type or "no body" for answer in one.answers)
        answers = ", ".join(f"<code>{escape(media_type)}</code>" for media_type in media_types)
        parts.append(f"<p>Answers {answers}.</p>")
        if one.example:
            parts.append(f"<pre>{escape(one.example.replace('{base}', base))}</pre>")
        parts.append("</section>")
    parts.append("<section><h2>Records</h2></section>")
    parts += [f"<h3 id={escape(name)}>{escape(name)}</h3>{_table(schema, schemas)}" for name, schema in schemas.items()]
    return _PAGE.replace("{version}", aula.__version__).replace("{parts}", "".join(parts))


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    resolved: Mapping[str, Any] = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return resolved


def _table(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' *' if name in schema.get('required', ()) else ''}</td>"
        f"<td>{escape(_type_of(field, schemas))}</td><td>{escape(_usual(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    what = f"<p>{_CODE.sub(_AS_CODE, escape(schema['description']))}</p>" if "description" in schema else ""
    return f"{what}<table><tr><th>field</th><th>type</th><th>usual</th></tr>{rows}</table>"


def _type_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " | ".join(repr(one) for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type_of(one, schemas) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}), schemas)}"
    bounds = {"minimum": "≥", "maximum": "≤", "minLength": "length ≥", "maxLength": "length ≤"}
    limits = [f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema]
    return " ".join([str(schema.get("type", "anything")), *limits])


def _usual(schema: Mapping[str, Any]) -> str:
    return "" if schema.get("default") in (None, []) else msgspec.json.encode(schema["default"]).decode()


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>aula: how to call it</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.5 ui-monospace,monospace}pre{overflow-x:auto;padding:1rem;border:1px solid;border-radius:.5rem}
section{border-top:1px solid;margin-top:2rem}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{text-align:left;padding:.2rem 1rem
.2rem 0;vertical-align:top}h2{overflow-wrap:anywhere}</style></head><body><main><h1>aula {version}</h1>
<p>Point an OpenAI client here, or a Triton one. Voice goes over a WebSocket, <code>/v1/realtime</code>, which this page
cannot try out. Fields with * must be given; the records that they name stand at the end. The same for programs:
<a href="/openapi.json">/openapi.json</a>.</p>{parts}</main></body></html>"""


def routes(operations: Sequence[Operation]) -> list[BaseRoute]:
    told = document(operations)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(told)

    async def docs(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(page(told, operations, base), headers=headers)

    return [Route("/openapi.json", openapi, name="openapi"), Route("/docs", docs, name="docs")]
