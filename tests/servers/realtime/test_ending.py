"""The end of service, with conversations open: who is in the middle of a turn hears its end, the others are let go."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from aula.core.types import Context, Understanding
from aula.servers.serving import open_doors
from tests.servers.doors import Models, small_house
from tests.servers.realtime.speaking import loud, quiet, text_of

PUSH = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


async def _opened(url: str) -> Any:
    socket = await websockets.connect(url.replace("http", "ws", 1) + "/v1/realtime")
    assert json.loads(await socket.recv())["type"] == "session.created"
    return socket


async def _send(socket: Any, *events: dict[str, Any]) -> None:
    for event in events:
        await socket.send(json.dumps(event))


async def _rest(socket: Any) -> tuple[list[str], int | None]:
    """Types of the events to the end, and the code of the close."""
    kinds: list[str] = []
    try:
        async with asyncio.timeout(20):
            while True:
                kinds.append(json.loads(await socket.recv())["type"])
    except ConnectionClosed:
        return kinds, socket.close_code


async def test_a_turn_under_way_is_heard_to_its_end_and_the_others_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, free = threading.Event(), threading.Event()
    understand = Models.understand

    def wait(self: Models, text: str, context: Context) -> Understanding:
        if text.startswith("what is inertia"):
            entered.set()
            free.wait()
        return understand(self, text, context)

    monkeypatch.setattr(Models, "understand", wait)
    async with small_house(tmp_path) as (house, _):
        async with open_doors(house) as address:
            silent, asking = await _opened(address.http), await _opened(address.http)
            await _send(
                asking,
                {"type": "session.update", "session": PUSH},
                {"type": "input_audio_buffer.append", "audio": text_of(loud(350) + quiet(100))},
                {"type": "input_audio_buffer.commit"},
                {"type": "response.create"},
            )
            await asyncio.to_thread(entered.wait)

            async def meanwhile() -> tuple[Any, int]:
                await house.traffic.closing.wait()
                try:
                    left = await _rest(silent)
                    return left, house.traffic.turns
                finally:
                    free.set()

            watching = asyncio.ensure_future(meanwhile())
            hearing = asyncio.ensure_future(_rest(asking))
        (kinds, code), turns = await watching
        assert (kinds, code, turns) == ([], 1001, 1)
        kinds, code = await hearing
        assert kinds[-1] == "response.done"
        assert "response.output_audio.delta" in kinds
        assert code == 1001
        assert (house.traffic.turns, house.traffic.guests) == (0, 0)


async def test_whoever_holds_the_button_may_end_his_question(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        async with open_doors(house) as address:
            socket = await _opened(address.http)
            await _send(
                socket,
                {"type": "session.update", "session": PUSH},
                {"type": "input_audio_buffer.append", "audio": text_of(loud(200))},
            )
            while json.loads(await socket.recv())["type"] != "conversation.item.input_audio_transcription.delta":
                pass

            async def go_on() -> tuple[list[str], int | None]:
                await house.traffic.closing.wait()
                await _send(
                    socket,
                    {"type": "input_audio_buffer.append", "audio": text_of(loud(150) + quiet(100))},
                    {"type": "input_audio_buffer.commit"},
                    {"type": "response.create"},
                )
                return await _rest(socket)

            going_on = asyncio.ensure_future(go_on())
        kinds, code = await going_on
        assert (kinds[-1], code) == ("response.done", 1001)


async def test_nobody_new_comes_in(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _), open_doors(house) as address:
        house.traffic.close()
        with pytest.raises(InvalidStatus) as refused:
            await _opened(address.http)
        assert refused.value.response.status_code == 503
