"""The Realtime door as a client meets it: the server in a process of its own, with the embedded default models.

    python -m benchmarks.realtime latency [--questions 50] [--unpaced]
    python -m benchmarks.realtime crowd [--idle 500] [--speaking 20] [--every 15] [--minutes 10]

`latency`: clock A at the client, push-to-talk. Each question is spoken by one of several synthetic voices, sent in
frames of 20 ms at speaking pace, with 250 ms of silence before the release; the clock runs from just before `commit` is
sent to the first `response.output_audio.delta`. Nothing comes from the cache of spoken answers.

`crowd`: sessions that say nothing, and some that ask a question every so often. Control events (an item that there is
not is asked for, on one idle session after another, ten times a second) are timed at the client; dropped connections
and the server's memory are counted.

Limits first: client and server share this machine's cores, so that the client's own work is in every figure; synthetic
voices speak more evenly than people do; the default recogniser has one thread, which hears about ten voices at once in
real time, so that with `--every` shorter than the questions take, sound waits. A table, then one line of JSON.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import websockets

from aula.audio.resampling import Resampler
from aula.bench.machine import machine, percentile
from aula.core.settings import load_settings
from aula.core.types import Capability, Context, SpeakRequest
from aula.runtime import open_runtime
from aula.servers.serving import serve as whole_server
from benchmarks.turn import QUESTIONS, VOICES

RATE = 24_000
FRAME = RATE // 50
RELEASE = np.zeros(RATE // 4, np.int16)
PUSH_TO_TALK = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
PROBES_A_SECOND = 10


async def record(count: int) -> list[np.ndarray[Any, np.dtype[np.int16]]]:
    """`count` questions as int16 at 24 kHz, each in another voice than the last time it is asked."""
    spoken = []
    async with open_runtime(load_settings()) as runtime:
        for number in range(count):
            text, _ = QUESTIONS[number % len(QUESTIONS)]
            voice = VOICES[(number + number // len(QUESTIONS)) % len(VOICES)]
            outcome = await runtime.submit(Capability.SPEAK, SpeakRequest(text, voice, 150), Context("en"))
            chunks = [chunk async for chunk in outcome.value]
            resampler = Resampler(outcome.value.rate, RATE)
            sound = resampler.feed(np.concatenate(chunks).astype(np.float32) / np.float32(32768))
            whole = np.concatenate([sound, resampler.flush()])
            spoken.append(np.concatenate([(whole * 32767).astype(np.int16), RELEASE]))
    return spoken


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def append(samples: np.ndarray[Any, np.dtype[np.int16]]) -> str:
    return event("input_audio_buffer.append", audio=base64.b64encode(samples.astype("<i2").tobytes()).decode())


@dataclass
class Asked:
    """`first_sound_ms` from the commit; the server's own account beside it."""

    first_sound_ms: float
    server_ms: float
    drafted: bool
    transcript: str
    stages: dict[str, float]


async def ask(
    socket: websockets.ClientConnection, sound: np.ndarray[Any, np.dtype[np.int16]], *, paced: bool = True
) -> Asked:
    frames = [append(sound[at : at + FRAME]) for at in range(0, len(sound), FRAME)]
    begun = time.perf_counter()
    for number, frame in enumerate(frames):
        if paced:
            await asyncio.sleep(max(0.0, begun + number * 0.02 - time.perf_counter()))
        await socket.send(frame)
    if paced:
        await asyncio.sleep(max(0.0, begun + len(frames) * 0.02 - time.perf_counter()))
    committed = time.perf_counter()
    await socket.send(event("input_audio_buffer.commit"))
    await socket.send(event("response.create"))
    first: float | None = None
    async for text in socket:
        # Not decoded unless it must be: the client's work would count as the server's.
        if first is None and '"response.output_audio.delta"' in str(text)[:60]:
            first = time.perf_counter()
        if '"response.done"' in str(text)[:40] or '"error"' in str(text)[:20]:
            told = json.loads(text)
            if told["type"] == "error" or told["response"]["status"] != "completed" or first is None:
                raise RuntimeError(str(told)[:500])
            aula = told["response"]["aula"]
            timings = aula["timings_ms"]
            total = timings["commit_to_first_audio"]
            return Asked(1000 * (first - committed), total, aula["drafted"], aula["question"], timings)
    raise RuntimeError("the server closed the connection")


@asynccontextmanager
async def server() -> AsyncIterator[tuple[str, int]]:
    """The door in another process: where it is, and the process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.realtime",
        "serve",
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"ws://127.0.0.1:{port}/v1/realtime?model=aula:mechanics-en", process.pid
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def serve() -> None:
    """As `aula serve`, with no answer from the cache of spoken ones, and nothing but Realtime at its doors asked."""
    settings = load_settings().replaced(speech__cache_mb=0, serve__port=0, serve__grpc_port=-1)
    await whole_server(settings, on_ready=lambda address: print(address.port, flush=True))


@asynccontextmanager
async def session(url: str) -> AsyncIterator[websockets.ClientConnection]:
    async with websockets.connect(url, open_timeout=300, compression=None, max_queue=None, close_timeout=1) as socket:
        await socket.recv()
        await socket.send(event("session.update", session=PUSH_TO_TALK))
        await socket.recv()
        yield socket


async def latency(questions: int, *, paced: bool) -> None:
    sounds = await record(questions)
    asked: list[Asked] = []
    async with server() as (url, _), session(url) as socket:
        await ask(socket, sounds[0], paced=paced)  # the first of all pays for what is cold
        for number, sound in enumerate(sounds):
            asked.append(await ask(socket, sound, paced=paced))
            print(f"\r{number + 1}/{len(sounds)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    times = [one.first_sound_ms for one in asked]
    inside = [one.server_ms for one in asked]
    rows = {
        "commit sent to first sound received": times,
        "the server's own account (clock A)": inside,
        "between the two": [outer - inner for outer, inner in zip(times, inside, strict=True)],
        **{f"  {stage}": [one.stages[stage] for one in asked] for stage in asked[0].stages if stage[:6] != "commit"},
    }
    drafted = sum(one.drafted for one in asked)
    print(f"{'':40} {'p50':>8} {'p95':>8} {'max':>8}   ms, {len(asked)} questions, {drafted} drafted")
    for name, values in rows.items():
        print(f"{name:40} {percentile(values, 0.5):8.1f} {percentile(values, 0.95):8.1f} {max(values):8.1f}")
    summary = {
        "benchmark": "realtime latency",
        "questions": len(asked),
        "paced": paced,
        "p50_ms": round(percentile(times, 0.5), 1),
        "p95_ms": round(percentile(times, 0.95), 1),
        "max_ms": round(max(times), 1),
        "server_p50_ms": round(percentile(inside, 0.5), 1),
        "drafted": drafted,
        "promise": {"p50_ms": 110, "p95_ms": 220},
        "machine": machine(),
    }
    print(json.dumps(summary, ensure_ascii=False))


@dataclass
class Crowd:
    control_ms: list[float] = field(default_factory=list)
    first_sound_ms: list[float] = field(default_factory=list)
    dropped: int = 0
    failed: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)


async def crowd(idle: int, speaking: int, every: float, minutes: float) -> None:
    sounds = await record(len(QUESTIONS))
    seen = Crowd()
    until = 0.0
    async with server() as (url, process):
        async with session(url) as first:
            await ask(first, sounds[0])
        opened = [session(url) for _ in range(idle + speaking)]
        sockets = [await one.__aenter__() for one in opened]
        until = time.perf_counter() + 60 * minutes
        tasks = [
            asyncio.create_task(_speak(socket, number, sounds, every, until, seen, speaking))
            for number, socket in enumerate(sockets[idle:])
        ]
        tasks += [asyncio.create_task(_probe(sockets[:idle], until, seen))]
        tasks += [asyncio.create_task(_weigh(process, until, seen))]
        await asyncio.gather(*tasks)
        seen.dropped += sum(socket.close_code is not None for socket in sockets)
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in opened), return_exceptions=True)
    settled = seen.memory_mb[max(1, len(seen.memory_mb) // 10) :]
    half = len(settled) // 2
    summary = {
        "benchmark": "realtime crowd",
        "idle": idle,
        "speaking": speaking,
        "every_s": every,
        "minutes": minutes,
        "dropped": seen.dropped,
        "failed_turns": len(seen.failed),
        "turns": len(seen.first_sound_ms),
        "control_p50_ms": round(percentile(seen.control_ms, 0.5), 2),
        "control_p99_ms": round(percentile(seen.control_ms, 0.99), 2),
        "control_max_ms": round(max(seen.control_ms), 2),
        "control_events": len(seen.control_ms),
        "first_sound_p50_ms": round(percentile(seen.first_sound_ms, 0.5), 1),
        "first_sound_p95_ms": round(percentile(seen.first_sound_ms, 0.95), 1),
        "memory_mb": {
            "first_half": round(float(np.mean(settled[:half])), 1),
            "second_half": round(float(np.mean(settled[half:])), 1),
            "least": round(min(settled), 1),
            "greatest": round(max(settled), 1),
        },
        "promise": {"dropped": 0, "control_p99_ms": 50},
        "machine": machine(),
    }
    for name, value in summary.items():
        print(f"{name:20} {value}")
    for failure in seen.failed[:3]:
        print(f"a turn failed: {failure}")
    print(json.dumps(summary, ensure_ascii=False))


async def _speak(
    socket: websockets.ClientConnection,
    number: int,
    sounds: list[np.ndarray[Any, np.dtype[np.int16]]],
    every: float,
    until: float,
    seen: Crowd,
    speakers: int,
) -> None:
    due = time.perf_counter() + every * number / speakers
    asked = number
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        try:
            async with asyncio.timeout(120):
                seen.first_sound_ms.append((await ask(socket, sounds[asked % len(sounds)])).first_sound_ms)
        except (RuntimeError, TimeoutError) as error:
            seen.failed.append(str(error)[:200])
        asked += 7
        due = max(due + every, time.perf_counter())


async def _probe(sockets: list[websockets.ClientConnection], until: float, seen: Crowd) -> None:
    number = 0
    while time.perf_counter() < until:
        socket = sockets[number % len(sockets)]
        number += 1
        sent = time.perf_counter()
        await socket.send(event("conversation.item.retrieve", item_id="none"))
        await socket.recv()
        seen.control_ms.append(1000 * (time.perf_counter() - sent))
        await asyncio.sleep(max(0.0, sent + 1 / PROBES_A_SECOND - time.perf_counter()))


async def _weigh(process: int, until: float, seen: Crowd) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while time.perf_counter() < until:
        with open(f"/proc/{process}/statm") as status:  # noqa: ASYNC230, PTH123 - the kernel answers at once
            seen.memory_mb.append(int(status.read().split()[1]) * page / 1e6)
        await asyncio.sleep(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("latency")
    one.add_argument("--questions", type=int, default=50)
    one.add_argument("--unpaced", action="store_true", help="as fast as the socket takes it; no clock A")
    many = commands.add_parser("crowd")
    many.add_argument("--idle", type=int, default=500)
    many.add_argument("--speaking", type=int, default=20)
    many.add_argument("--every", type=float, default=15.0, help="seconds between two questions of one speaker")
    many.add_argument("--minutes", type=float, default=10.0)
    commands.add_parser("serve", help="the server alone; prints its port")
    options = parser.parse_args()
    if options.command == "serve":
        asyncio.run(serve())
    elif options.command == "latency":
        asyncio.run(latency(options.questions, paced=not options.unpaced))
    else:
        asyncio.run(crowd(options.idle, options.speaking, options.every, options.minutes))


if __name__ == "__main__":
    main()
