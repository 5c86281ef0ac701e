"""Messages that no client would send, by the thousand, at both doors: no defect, no hang, no growth.

    PYTHONPATH=src python -m tests.servers.kserve.fuzz [--messages 10000] [--seed 1]

Lawful requests are bent in one or several ways: bytes flipped, cut, doubled; numbers and names replaced; lengths that
lie; other paths, methods, packings. What is left lawful is answered; everything else gets the protocol's own error.
"""

import argparse
import asyncio
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from aula.servers.kserve.protocol import SERVICE, protocol
from aula.serving.memory import resident_bytes
from tests.servers.kserve.serving import DTYPES, Doors, serving

PATIENCE_S = 30.0
AT_ONCE = 8
WARM = 1000
"""Messages after which memory may grow no more."""
_MODELS = ("twice", "echo", "gate", "shy")
_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**63,
    -(2**63),
    10**30,
    1.5,
    1e308,
    True,
    None,
    "7",
    [],
    {},
    [[[]]],
)
_WORDS = ("", "x", "bias", "y", "FP32", "BYTES", "BF16", "\x00", "../x", "惯性", "x" * 5000, "%00", "\ud800")
_PATHS = (
    "/v2", "/v2/", "/v2/models", "/v2/models/twice", "/v2/models/twice/config", "/v2/models/twice/stats",
    "/v2/models/twice/infer", "/v2/models/echo/infer", "/v2/models/gate/infer", "/v2/models/twice/versions/7/infer",
    "/v2/models/../infer", "/v2/models//infer", "/v2/models/%2e%2e/infer", "/v2/models/twice/versions/%00/infer",
    "/v2/repository/index", "/v2/repository/models/twice/load", "/v2/health/ready", "/v2/models/" + "a" * 3000,
)  # fmt: skip


@dataclass
class Outcome:
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    grown_bytes: int = 0


def lawful(dice: random.Random, raw: float = 0.5) -> tuple[str, dict[str, Any], list[bytes]]:
    """A model, a request's JSON, and the tensors behind it: `raw` is the part of them that come so."""
    model = dice.choice(_MODELS)
    tensors: list[bytes] = []
    inputs: list[dict[str, Any]] = []

    def add(name: str, datatype: str, shape: list[int]) -> None:
        count = int(np.prod(shape))
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if datatype in ("FP16", "BF16") or dice.random() < raw:
            kind = np.dtype(DTYPES[datatype])
            tensors.append(b"\x01\x00\x00\x00a" * count if datatype == "BYTES" else bytes(count * kind.itemsize))
            one["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            one["data"] = [{"BYTES": "a", "BOOL": True}.get(datatype, 1)] * count
        inputs.append(one)

    if model == "echo":
        for name in DTYPES:
            add(name, name, [2])
    elif model == "twice":
        rows = dice.randint(1, 4)
        add("x", "FP32", [rows, 3])
        add("bias", "INT64", [rows])
    else:
        add("x", "FP32", [dice.randint(1, 5)])
    asked: dict[str, Any] = {"inputs": inputs}
    if dice.random() < 0.5:
        asked["parameters"] = {
            name: dice.choice((True, 0, 1000, "question", "batch", "local"))
            for name in dice.sample(("timeout", "tier", "tenant", "priority", "binary_data_output", "odd"), 2)
        }
    return model, asked, tensors


def bent(value: Any, dice: random.Random, rate: float) -> Any:
    """The same with parts of it replaced, renamed, dropped or doubled."""
    if dice.random() < rate:
        return dice.choice((*_NUMBERS, *_WORDS))
    if isinstance(value, dict):
        made = {}
        for name, one in value.items():
            fate = dice.random()
            if fate < rate:
                continue
            made[dice.choice(_WORDS) if fate < 2 * rate else name] = bent(one, dice, rate)
        return made
    if isinstance(value, list):
        made_list = [bent(one, dice, rate) for one in value]
        return made_list * 2 if dice.random() < rate else made_list
    return value


def torn(content: bytes, dice: random.Random) -> bytes:
    """The same with some of its bytes flipped, cut out, doubled or made up."""
    made = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place, length = dice.randint(0, len(made)), dice.randint(0, 20)
        match dice.randrange(4):
            case 0 if place < len(made):
                made[place] ^= 1 << dice.randrange(8)
            case 1:
                del made[place : place + length]
            case 2:
                made[place:place] = made[place : place + length]
            case _:
                made[place:place] = dice.randbytes(length)
    return bytes(made)


def http_message(dice: random.Random) -> tuple[bytes, bool]:
    """What is sent, and whether its head tells the true length."""
    model, asked, tensors = lawful(dice)
    text = json.dumps(bent(asked, dice, dice.choice((0.0, 0.02, 0.1)))).encode("utf-8", "surrogatepass")
    length: Any = len(text)
    body = text + b"".join(tensors)
    if dice.random() < 0.4:
        body = torn(body, dice)
    if dice.random() < 0.1:
        length = dice.choice((0, -1, 3, 10**9, "x", "", len(body), len(body) + 1, "1e3", "٣"))
    headers = [("Host", "door"), ("Connection", "close"), ("Inference-Header-Content-Length", length)]
    if dice.random() < 0.2:
        packing = dice.choice(("gzip", "deflate", "identity", "br", "GZIP", "", "gzip, gzip"))
        headers.append(("Content-Encoding", packing))
        if dice.random() < 0.7:
            packer = zlib.compressobj(1, wbits=31 if packing == "gzip" else 15)
            body = packer.compress(body) + packer.flush()
            body = torn(body, dice) if dice.random() < 0.3 else body
    if dice.random() < 0.2:
        headers.append(("Accept-Encoding", dice.choice(("gzip", "deflate", "br", "*", ",,;q=x"))))
    told = len(body)
    if is_lying := dice.random() < 0.05:
        told = dice.choice((0, len(body) + 1, len(body) + 10**6, max(0, len(body) - 3)))
    headers.append(("Content-Length", told))
    method = dice.choice(("GET", "PUT", "OPTIONS", "post")) if dice.random() < 0.05 else "POST"
    path = dice.choice(_PATHS) if dice.random() < 0.3 else f"/v2/models/{model}/infer"
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    return head.encode() + body, not is_lying


async def ask_http(address: str, content: bytes, is_true: bool) -> str:
    """The status; "closed" where the server said nothing, which only an untrue head allows."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(content)
        await writer.drain()
        if not is_true:
            writer.write_eof()
        answer = await reader.read()
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    status = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
    if status.startswith(("4", "5")) and b"\r\ncontent-type: application/json" in answer and not _is_error(answer):
        return f"{status} without a word"
    return status


def _is_error(answer: bytes) -> bool:
    return isinstance(json.loads(answer.partition(b"\r\n\r\n")[2]).get("error"), str)


def grpc_message(dice: random.Random) -> tuple[str, bytes]:
    """A method and what is sent to it."""
    model, asked, tensors = lawful(dice, dice.choice((1.0, 1.0, 0.5)))
    others = [one for one in protocol().methods if "Stream" not in one]
    name = "ModelInfer" if dice.random() < 0.8 else dice.choice(others)
    if dice.random() < 0.2:
        model = dice.choice((*_MODELS, "", "nobody"))
    request = protocol().ModelInferRequest(model_name=model, id="7")
    for one in asked["inputs"]:
        shape = [size if dice.random() > 0.02 else dice.choice((-1, 0, 2**40, 10**6)) for size in one["shape"]]
        datatype = one["datatype"] if dice.random() > 0.02 else dice.choice(("FP31", "BYTES", "FP32", ""))
        added = request.inputs.add(name=one["name"], datatype=datatype, shape=shape)
        if "data" in one and dice.random() < 0.5:
            added.contents.fp32_contents.extend([1.0] * len(one["data"]))
    request.raw_input_contents.extend(tensors if dice.random() < 0.5 else [torn(one, dice) for one in tensors])
    if dice.random() < 0.3:
        request.parameters["timeout"].int64_param = dice.choice((0, -1, 2**62, 1000))
    raw = request.SerializeToString()
    return name, torn(raw, dice) if dice.random() < 0.5 else raw


async def ask_grpc(channel: grpc.aio.Channel, name: str, raw: bytes) -> str:
    try:
        await channel.unary_unary(f"/{SERVICE}/{name}")(raw)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def attack(doors: Doors, messages: int, seed: int) -> Outcome:
    """Half over HTTP and half over gRPC. A message that fails is told with its number, which its seed makes again."""
    outcome = Outcome()
    before = 0
    async with grpc.aio.insecure_channel(doors.grpc) as channel:

        def one(number: int) -> Awaitable[str]:
            dice = random.Random(f"{seed}.{number}")
            return ask_grpc(channel, *grpc_message(dice)) if number % 2 else ask_http(doors.http, *http_message(dice))

        async def watched(number: int, ask: Callable[[int], Awaitable[str]]) -> None:
            try:
                told = await asyncio.wait_for(ask(number), PATIENCE_S)
            except Exception as error:
                told = type(error).__name__
            outcome.answers[told] += 1
            if told in ("500", "INTERNAL", "UNKNOWN") or not (told.isupper() or told.isdigit() or told == "closed"):
                outcome.failures.append(f"message {number} of seed {seed}: {told}")

        for start in range(0, messages, AT_ONCE):
            if start >= WARM and not before:
                before = resident_bytes()
            await asyncio.gather(*(watched(number, one) for number in range(start, min(start + AT_ONCE, messages))))
        outcome.grown_bytes = resident_bytes() - before if before else 0
        assert await ask_grpc(channel, "ServerLive", b"") == "OK"
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with serving() as doors:
        outcome = asyncio.run(attack(doors, options.messages, options.seed))
        counts = doors.call(doors.house.runtime.statistics)
    print(dict(outcome.answers.most_common()))
    print(f"memory grew by {outcome.grown_bytes / 2**20:.1f} MiB after the first {WARM}; in flight: {counts.in_flight}")
    print("\n".join(outcome.failures))
    sys.exit(bool(outcome.failures or counts.in_flight))


if __name__ == "__main__":
    main()
