"""Malformed, mutated and disordered events against the served door: no 500, no hang, no growth.

    python -m tests.servers.realtime.fuzz [--messages 10000] [--seed 7]

After every fifty messages a probe asks for an item that there is not; its error event must come back. A seed replays.
"""

import argparse
import asyncio
import copy
import gc
import json
import random
import tempfile
import tracemalloc
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websockets

from aula.servers.realtime.shapes import CLIENT_EVENTS
from tests.servers.realtime.speaking import Served, loud, quiet, served, text_of

BETWEEN_PROBES = 50
PROBES_A_CONNECTION = 6
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**63, "", "x", "root", "item_0", "é\u0000", "A" * 5000, [], {}, [[]]),
    *([1, "two", None], {"type": "message"}, {"a": {"b": {"c": [1]}}}),
)
_SOUND = text_of(loud(150))
_OTHERS = tuple(sorted(set(CLIENT_EVENTS) - {"output_audio_buffer.clear"}))
_MODELS = ("aula", "aula:small", "aula:none", "gpt-realtime")


@dataclass
class Outcome:
    """What came back, by type of event, and codes of errors; `grown_kb` between the first and the last connection."""

    sent: int = 0
    events: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    grown_kb: float = 0.0


def lawful(random_: random.Random, known: list[str]) -> dict[str, Any]:
    """An event that is well formed, whenever it comes."""
    item_id = random_.choice(known) if known else "none"
    text = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is inertia?"}]}
    sound = {"type": "input_audio", "audio": _SOUND}
    detection = random_.choice([None, {"type": "server_vad", "silence_duration_ms": 200}, {"type": "semantic_vad"}])
    coding = random_.choice(["audio/pcm", "audio/pcmu", "audio/pcma"])
    session = {
        "type": "realtime",
        "output_modalities": [random_.choice(["audio", "text"])],
        "audio": {"input": {"turn_detection": detection, "format": {"type": coding}}},
    }
    if random_.random() < 0.1:
        session["model"] = random_.choice(_MODELS)
    kind = random_.choice(("session.update", *["input_audio_buffer.append"] * 2, *_OTHERS))
    match kind:
        case "session.update":
            return {"type": kind, "session": session}
        case "input_audio_buffer.append":
            return {"type": kind, "audio": text_of(random_.choice([loud, quiet])(random_.randint(1, 200)))}
        case "conversation.item.create":
            item = random_.choice([text, {**text, "content": [sound]}])
            return {"type": kind, "item": item, "previous_item_id": random_.choice([None, "root", item_id])}
        case "conversation.item.retrieve" | "conversation.item.delete":
            return {"type": kind, "item_id": item_id}
        case "conversation.item.truncate":
            return {"type": kind, "item_id": item_id, "content_index": 0, "audio_end_ms": 10}
        case "response.create":
            return {"type": kind, "response": {"conversation": random_.choice(["auto", "none"])}}
    return {"type": kind}


def message(random_: random.Random, known: list[str]) -> str | bytes:
    kind = random_.random()
    if kind < 0.1:
        return bytes(random_.randrange(256) for _ in range(random_.randint(0, 40)))
    if kind < 0.2:
        return "".join(chr(random_.choice((*range(32, 127), 0, 233, 0x4E00))) for _ in range(random_.randint(0, 60)))
    if kind < 0.25:
        return json.dumps(random_.choice(_VALUES))
    if kind < 0.3:
        return json.dumps(
            {"type": random_.choice([*CLIENT_EVENTS, "no.such", None]), "event_id": random_.choice(_VALUES)}
        )
    event = lawful(random_, known)
    if kind < 0.6:
        return json.dumps(event)
    if kind < 0.7:
        whole = json.dumps(event)
        return whole[: random_.randrange(len(whole))]
    return json.dumps(_mutated(event, random_))


def _mutated(event: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """One value somewhere in it is another, gone, or under another name."""
    event = copy.deepcopy(event)
    at: Any = event
    while True:
        key = random_.choice(list(at)) if isinstance(at, dict) else random_.randrange(len(at))
        below = at[key]
        if isinstance(below, dict | list) and below and random_.random() < 0.7:
            at = below
            continue
        how = random_.random()
        if how < 0.7:
            at[key] = random_.choice(_VALUES)
        elif how < 0.85 or isinstance(at, list):
            del at[key]
        else:
            at[f"{key}_"] = at.pop(key)
        return event


async def attack(door: Served, messages: int, seed: int) -> Outcome:
    outcome = Outcome()
    random_ = random.Random(seed)
    first_kb: float | None = None
    while outcome.sent < messages:
        model = random_.choice(_MODELS[:2])
        headers = {"OpenAI-Beta": "realtime=v1"} if random_.random() < 0.2 else {}
        url = f"{door.websocket}/realtime?model={model}"
        async with websockets.connect(url, additional_headers=headers, max_queue=None) as socket:
            known: list[str] = []
            for _ in range(PROBES_A_CONNECTION):
                for _ in range(min(BETWEEN_PROBES, messages - outcome.sent)):
                    await socket.send(message(random_, known))
                    outcome.sent += 1
                probe = f"probe-{outcome.sent}"
                await socket.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "-", "event_id": probe}))
                await _drain(socket, probe, outcome, known)
        if tracemalloc.is_tracing():
            while door.door.statistics().open:  # noqa: ASYNC110 - it ends in the server's own tasks
                await asyncio.sleep(0.001)
            gc.collect()
            held_kb = tracemalloc.get_traced_memory()[0] / 1024
            first_kb = held_kb if first_kb is None else first_kb
            outcome.grown_kb = held_kb - first_kb
    return outcome


async def _drain(socket: websockets.ClientConnection, probe: str, outcome: Outcome, known: list[str]) -> None:
    """Events up to the probe's error."""
    async with asyncio.timeout(60):
        while True:
            event = json.loads(await socket.recv())
            outcome.events[event["type"]] += 1
            if "item" in event and isinstance(event["item"].get("id"), str):
                known[:] = [*known[-20:], event["item"]["id"]]
            if event["type"] != "error":
                continue
            outcome.codes[event["error"]["code"]] += 1
            if event["error"]["type"] == "server_error":
                outcome.failures.append(event["error"]["message"])
            if event["error"]["event_id"] == probe:
                return


async def _main(messages: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with served(Path(folder)) as door:
            await attack(door, 300, seed + 1)  # what is made once is made before memory is looked at
            tracemalloc.start()
            outcome = await attack(door, messages, seed)
            with suppress(TimeoutError):
                async with asyncio.timeout(5):  # streams of turns that were left are closed in their own threads
                    while door.transcriber.opened > door.transcriber.closed:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            print(f"{outcome.sent} messages, seed {seed}; memory grew by {outcome.grown_kb:.0f} KiB")
            for name, count in (outcome.events + outcome.codes).most_common():
                print(f"  {count:7d}  {name}")
            print(f"still open: {door.door.statistics().open}")
            opened, closed = door.transcriber.opened, door.transcriber.closed
            print(f"streams opened {opened}, closed {closed}; failures: {outcome.failures or 'none'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    asyncio.run(_main(options.messages, options.seed))
