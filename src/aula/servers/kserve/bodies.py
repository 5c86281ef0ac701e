"""A body of HTTP, on its way in and out: how long it may be, how it is packed, and where its tensors lie in memory."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.errors import InputError
from aula.servers.kserve.faults import NotServedError, TooMuchError

MOST_BYTES = 256 * 2**20
"""Of a body, unpacked."""
MOST_JSON = 8 * 2**20
"""Of its JSON, which holds the loop while it is read; tensors as bytes do not."""
HEADER_LENGTH = b"inference-header-content-length"
ALIGNED = 64
"""Where in memory the first tensor begins: engines read it there, and vectors like whole cache lines."""
_PACKED_FROM = 1024
"""An answer below this gains nothing from being packed."""
_LONG = 256 * 1024
"""Packing this much would be felt by everybody else: it goes to a thread."""
_WINDOWS = {"gzip": 31, "deflate": 15}

Receive = Callable[[], Awaitable[Any]]


class LeftError(Exception):
    """The client is gone: nobody is there to be told anything."""


@dataclass(frozen=True, slots=True)
class Body:
    """`json`, and behind it the bytes of tensors, which may be written to."""

    json: memoryview
    tensors: memoryview


async def read_body(receive: Receive, headers: Mapping[bytes, bytes]) -> Body:
    """Raises InputError, TooMuchError, LeftError."""
    chunks = await _chunks(receive, headers.get(b"content-length"))
    packing = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if packing != "identity":
        chunks = [await unpacked(b"".join(chunks), packing)]
    total = sum(map(len, chunks))
    json_bytes = _json_length(headers.get(HEADER_LENGTH), total)
    if json_bytes > MOST_JSON:
        raise TooMuchError(
            f"the JSON has {json_bytes} bytes, above {MOST_JSON}", next_step="send tensors as binary data"
        )
    if len(chunks) == 1 and json_bytes == total:
        return Body(memoryview(chunks[0]), memoryview(b""))
    whole = _aligned(total, json_bytes)
    place = 0
    for chunk in chunks:
        whole[place : place + len(chunk)] = chunk
        place += len(chunk)
    return Body(whole[:json_bytes], whole[json_bytes:])


async def unpacked(data: bytes, packing: str) -> bytes:
    """Raises InputError for what is packed otherwise, broken, or grows beyond MOST_BYTES."""
    if packing not in _WINDOWS:
        raise NotServedError(
            f"the body is packed by {packing[:40]!r}", available=list(_WINDOWS), next_step="use one of these, or none"
        )

    def work() -> bytes:
        unpacker = zlib.decompressobj(_WINDOWS[packing])
        made = unpacker.decompress(data, MOST_BYTES)
        if unpacker.unconsumed_tail:
            raise TooMuchError(f"the body unpacks to more than {MOST_BYTES} bytes", next_step="send less at once")
        if not unpacker.eof or unpacker.unused_data:
            raise InputError(f"the body is not one whole {packing}", next_step="pack it as one piece")
        return made

    try:
        # A small one may hide a large one.
        return await asyncio.to_thread(work)
    except zlib.error as error:
        raise InputError(f"the body is no {packing}: {error}", next_step="pack it whole, or not at all") from error


def packing_of(headers: Mapping[bytes, bytes]) -> str | None:
    """How the answer is to be packed: only where the client names one way, as tritonclient does when it is told to.
    Libraries that name all they know, unasked, would have every tensor of random numbers packed, for nothing."""
    told = [part.split(";")[0].strip() for part in headers.get(b"accept-encoding", b"").decode("latin-1").split(",")]
    return told[0] if len(told) == 1 and told[0] in _WINDOWS else None


async def packed(parts: Sequence[Any], packing: str | None) -> tuple[bytes, bool]:
    """All in one, and whether it is packed."""
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    if packing is None or len(whole) < _PACKED_FROM:
        return whole, False

    def work() -> bytes:
        packer = zlib.compressobj(1, wbits=_WINDOWS[packing])
        return packer.compress(whole) + packer.flush()

    return (await asyncio.to_thread(work) if len(whole) > _LONG else work()), True


async def _chunks(receive: Receive, told: bytes | None) -> list[bytes]:
    if told is not None and told.isdigit() and int(told[:20]) > MOST_BYTES:
        raise _too_much(int(told[:20]))
    chunks: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise LeftError
        chunk = message.get("body", b"")
        total += len(chunk)
        if total > MOST_BYTES:
            raise _too_much(total)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks


def _too_much(size: int) -> TooMuchError:
    return TooMuchError(f"the body has {size} bytes or more, above {MOST_BYTES}", next_step="send less at once")


def _json_length(told: bytes | None, total: int) -> int:
    if told is None:
        return total
    if not told.isdigit() or len(told) > 12 or int(told) > total:
        raise InputError(
            f"Inference-Header-Content-Length is {told[:40].decode('latin-1')!r}, and the body has {total} bytes",
            next_step="give the bytes of the JSON before the tensors",
        )
    return int(told)


def _aligned(size: int, tensors_at: int) -> memoryview:
    """Memory in which what lies at `tensors_at` is aligned."""
    store = np.empty(size + ALIGNED, np.uint8)
    skipped = -(store.__array_interface__["data"][0] + tensors_at) % ALIGNED
    return store[skipped : skipped + size].data
