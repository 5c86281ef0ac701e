"""Malformed requests at OpenAI's door: each is answered by the protocol's own error, and the server stays well.

    python -m tests.servers.openai.fuzz --count 10000 --seed 1

The same seed makes the same requests.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from aula.serving.memory import resident_bytes
from tests.servers.doors import Served, recording, served

AT_ONCE = 8
PATIENCE_S = 60.0
"""Nothing here takes a second; what takes so long hangs."""
_CHAT = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}], "stream": False}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/embeddings": {"model": "aula-embed", "input": ["a", "b"], "encoding_format": "base64"},
    "/v1/audio/speech": {"model": "tts-1", "voice": "alloy", "input": "one two", "response_format": "wav"},
}
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 2**70, "", "\x00", "\ud800", "x" * 5000, [], {}, [[]], {"a": {}}, "NaN", "😀" * 50,
    [None] * 3, "../../etc/passwd", "';--", "%s%n", {"id": 5},
)  # fmt: skip


@dataclass
class Found:
    """What came of a run. `faults` are answers that should not be."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    grown_bytes: int = 0
    left_open: int = 0
    more_threads: int = 0


async def run(door: Served, count: int, seed: int) -> Found:
    """`count` requests, AT_ONCE at a time."""
    found = Found()
    warm_up = random.Random(seed - 1)
    host, port = door.address.host, door.address.port
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    async with httpx.AsyncClient(base_url=door.url, timeout=PATIENCE_S, limits=limits) as client:

        async def some(number: int, generator: random.Random, into: Found) -> None:
            for _ in range(number):
                await _one(client, host, port, generator, into)

        # What is loaded and allocated once is no growth.
        await some(min(count, 300), warm_up, Found())
        before, threads = resident_bytes(), threading.active_count()
        shares = [count // AT_ONCE + (place < count % AT_ONCE) for place in range(AT_ONCE)]
        await asyncio.gather(
            *(some(share, random.Random(f"{seed}/{place}"), found) for place, share in enumerate(shares))
        )
        found.grown_bytes = resident_bytes() - before
        found.more_threads = threading.active_count() - threads
        well = await client.post("/v1/chat/completions", json=_CHAT)
        if well.status_code != 200:
            found.faults.append(f"after the run a question is answered by {well.status_code}")
    found.left_open = door.models.open - door.models.closed + door.house.traffic.turns
    return found


async def _one(client: httpx.AsyncClient, host: str, port: int, generator: random.Random, found: Found) -> None:
    kind = generator.choice(("json", "json", "json", "bytes", "form", "form", "raw", "path"))
    try:
        if kind == "raw":
            found.statuses[await _raw(host, port, generator)] += 1
            return
        method, path, options = _request(kind, generator)
        url = client.base_url.copy_with(raw_path=quote(path, safe="/.%:?&=~").encode())
        answer = await client.request(method, url, **options)
    except httpx.TimeoutException:
        found.faults.append(f"{kind}: no answer in {PATIENCE_S:g} s")
        return
    except httpx.TransportError:
        found.statuses["cut"] += 1  # a large body that is refused before it was sent
        return
    found.statuses[str(answer.status_code)] += 1
    if answer.status_code >= 500:
        found.faults.append(f"{method} {path[:60]} {str(options)[:300]}: {answer.status_code} {answer.text[:200]}")
    elif answer.status_code >= 400 and path.startswith("/v1") and method != "HEAD":
        error = answer.json()["error"]
        if set(error) != {"message", "type", "param", "code"}:
            found.faults.append(f"{path}: the error has another shape: {answer.text[:200]}")


def _request(kind: str, generator: random.Random) -> tuple[str, str, dict[str, Any]]:
    path = generator.choice(list(_BODIES))
    headers = {"Content-Type": "application/json"}
    if kind == "json":
        body = json.dumps(_bent(_BODIES[path], generator)).encode()
        return "POST", path, {"content": body, "headers": headers}
    if kind == "bytes":
        return "POST", path, {"content": _torn(json.dumps(_BODIES[path]).encode(), generator), "headers": headers}
    if kind == "form":
        return "POST", "/v1/audio/transcriptions", _form(generator)
    odd = "".join(generator.choice("/.%:?#&=~aulav1é\\ ") for _ in range(generator.randrange(1, 30)))
    place = generator.choice(["/v1/models/", "/v1/", "/", "/v1/models/aula:"]) + odd
    return generator.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]), place, {}


def _bent(value: Any, generator: random.Random) -> Any:
    """The value with something in it replaced, removed or added."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        made = dict(value)
        name = generator.choice(list(made))
        match generator.randrange(5):
            case 0:
                del made[name]
            case 1:
                made[str(generator.choice(_ODD))[:50]] = generator.choice(_ODD)
            case _:
                made[name] = _bent(made[name], generator)
        return made
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        return [_bent(one, generator) if index == place else one for index, one in enumerate(value)]
    if generator.random() < 0.05:
        deep: Any = 0
        for _ in range(400):
            deep = [deep]
        return deep
    return generator.choice(_ODD)


def _torn(raw: bytes, generator: random.Random) -> bytes:
    """Bytes flipped, cut off, put in, or said twenty thousand times."""
    torn = bytearray(raw)
    for _ in range(generator.randrange(1, 8)):
        place = generator.randrange(len(torn) + 1)
        match generator.randrange(4):
            case 0:
                del torn[place:]
            case 1:
                torn[place:place] = generator.randbytes(generator.randrange(1, 9))
            case 2:
                torn[place : place + 1] = generator.randbytes(1)
            case _:
                torn[place:place] = generator.choice([b"[", b'{"a":', b"\xff\xfe", b'"']) * generator.choice(
                    [1, 20_000]
                )
    return bytes(torn)


def _form(generator: random.Random) -> dict[str, Any]:
    sound = recording(generator.choice([0.0, 0.1, 0.3]))
    sound = generator.choice([sound, _torn(sound, generator), b"", generator.randbytes(300), b"OggS" + sound, b"ID3"])
    fields = {
        "model": generator.choice(["whisper-1", "whisper-1", "x", ""]),
        "response_format": generator.choice(["json", "text", "srt", "vtt", "verbose_json", "pdf"]),
        "language": generator.choice(["en", "und", "zh", "x" * 40, ""]),
        "stream": generator.choice(["true", "false", "maybe"]),
        "temperature": generator.choice(["0", "nan", "-1", "1e999"]),
        "timestamp_granularities[]": generator.choice(["segment", "word", "day"]),
    }
    chosen = dict(generator.sample(list(fields.items()), generator.randrange(len(fields) + 1)))
    name = generator.choice(["q.wav", "../../q.wav", "\u0000", "q" * 300])
    if generator.random() < 0.7:
        chosen.setdefault("model", "whisper-1")
        return {"data": chosen, "files": {generator.choice(["file", "file", "file", "other"]): (name, sound)}}
    body = _torn(
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="q"\r\n\r\n' + sound + b"\r\n--b--\r\n",
        generator,
    )
    return {
        "content": body,
        "headers": {"Content-Type": f"multipart/form-data{generator.choice(['; boundary=b', '', '; boundary='])}"},
    }


async def _raw(host: str, port: int, generator: random.Random) -> str:
    """Bytes that may be no HTTP at all; the first word of the answer's status, or how it ended."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{}"
    raw = generator.choice(
        [
            generator.randbytes(generator.randrange(1, 200)),
            head % (host.encode(), generator.choice([2, 1])),
            _torn(head % (host.encode(), 2), generator)[:70_000],
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * generator.choice([10, 20_000, 70_000]) + b" HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode(),
            b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * generator.choice([1, 200]) + b"\r\n",
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ]
    )
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(raw)
        await writer.drain()
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(4096), PATIENCE_S)
    except (ConnectionError, OSError):
        return "cut"
    finally:
        writer.transport.abort()
    status = answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.1 ") else "closed"
    return f"raw {status}"


async def _main(count: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as home:
        async with served(Path(home)) as door:
            found = await run(door, count, seed)
    print(f"{count} requests, seed {seed}: {dict(found.statuses.most_common())}")
    print(f"grown by {found.grown_bytes / 2**20:.1f} MiB, {found.more_threads} threads; left open: {found.left_open}")
    for fault in found.faults[:20]:
        print("FAULT", fault)
    return 1 if found.faults or found.left_open else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    sys.exit(asyncio.run(_main(chosen.count, chosen.seed)))
