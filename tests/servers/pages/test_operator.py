import json
from pathlib import Path

from aula.core.clock import FakeClock
from aula.core.types import Capability, Context
from aula.servers.callers import Caller
from aula.servers.pages.operator import EVERY_SECONDS
from aula.servers.turn_log import TurnRecord
from tests.servers.pages.people import app_of, call, small_house, turn, until, watching

OPERATES = {"op": Caller("school", abilities=frozenset({"operate"})), "pupil": Caller("class-5b")}


async def test_the_state_comes_at_once_then_as_time_passes(tmp_path: Path) -> None:
    clock = FakeClock()
    async with small_house(tmp_path, clock) as (house, _):
        await house.runtime.submit(Capability.EMBED, ["moon"], Context(tenant="class-5b"))
        async with watching(app_of(house), "/pages/state") as page:
            assert await page.next("turns") == []
            first = await page.next("state")
            assert first["requests"]["answered"] >= 1
            ladders = {ladder["name"]: ladder for ladder in first["ladders"]}
            assert [rung["name"] for rung in ladders["embed"]["rungs"]] == ["tiny-embed", "spare"]
            assert ladders["embed"]["rungs"][0]["served"] >= 1
            await house.runtime.submit(Capability.EMBED, ["moon"], Context(tenant="class-5b"))
            clock.advance(EVERY_SECONDS)
            second = await page.next("state")
            assert second["requests"]["answered"] == first["requests"]["answered"] + 1


async def test_turns_are_told_as_they_end_without_a_word_of_them(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        house.turns.add(turn("a secret question", answer="a secret answer"))
        async with watching(app_of(house), "/pages/state") as page:
            before = await page.next("turns")
            await page.next("state")
            house.turns.add(turn("another secret", tenant="class-5b"))
            after = await page.next("turn")
        assert after["tenant"] == "class-5b"
        assert after["timings_ms"]["transcribe"] == 10.0
        assert "secret" not in json.dumps([before, after])
        allowed = set(TurnRecord.__slots__) - {"question", "answer", "citations"}
        assert set(after) == allowed


async def test_a_page_that_is_closed_is_forgotten(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        async with watching(app_of(house), "/pages/state") as page:
            await page.next("state")
            assert len(house.turns._watchers) == 1
        assert house.turns._watchers == []


async def test_percentiles_are_by_clock(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        for ms in (10.0, 20.0, 30.0):
            house.turns.add(turn("?", timings_ms={"commit_to_first_audio": ms}))
        house.turns.add(turn("?", clock="text", timings_ms={"commit_to_first_audio": 5.0}))
        async with watching(app_of(house), "/pages/state") as page:
            clocks = (await page.next("state"))["clocks"]
        assert clocks["A"]["all"] == {"count": 3, "p50": 20.0, "p95": 30.0, "p99": 30.0}
        assert clocks["text"]["all"]["count"] == 1
        assert len(clocks["A"]["minutes"]) == 60


async def test_an_override_holds_until_the_choice_is_given_back(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        app = app_of(house)
        chosen = await call(app, "/pages/override", method="POST", body=b'{"ladder": "embed", "rung": "spare"}')
        assert chosen.json == {"ladder": "embed", "rung": "spare"}
        outcome = await house.runtime.submit(Capability.EMBED, ["moon"], Context())
        assert outcome.rung == "spare"
        async with watching(app, "/pages/state") as page:
            state = await page.next("state")
        assert next(one for one in state["ladders"] if one["name"] == "embed")["overridden"] == "spare"
        assert state["events"][-1]["cause"] == "override"
        await call(app, "/pages/override", method="POST", body=b'{"ladder": "embed", "rung": null}')
        assert (await house.runtime.submit(Capability.EMBED, ["moon"], Context())).rung == "tiny-embed"


async def test_what_cannot_be_chosen_is_told_with_what_can(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        app = app_of(house)
        for body, known in (
            (b'{"ladder": "embed", "rung": "best"}', "tiny-embed"),
            (b'{"ladder": "sing", "rung": null}', "embed"),
            (b'{"ladder": "embed", "rung": null, "more": 1}', None),
            (b"[]", None),
            (b"\xff", None),
            (b"[" * 5000, None),
            (b" " * 20_000, None),
        ):
            refused = await call(app, "/pages/override", method="POST", body=body)
            assert refused.status == 400, body[:40]
            assert known is None or known in refused.json["error"]["available"]
        assert all(one.overridden is None for one in house.runtime.ladders())


async def test_a_rung_is_loaded_anew_and_goes_on_serving(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        app = app_of(house)
        await house.runtime.submit(Capability.EMBED, ["moon"], Context())
        told = (await call(app, "/pages/renew", method="POST", body=b'{"ladder": "embed", "rung": "tiny-embed"}')).json
        assert (told["rung"], told["error"]) == ("tiny-embed", None)
        assert (await house.runtime.submit(Capability.EMBED, ["moon"], Context())).rung == "tiny-embed"
        refused = await call(app, "/pages/renew", method="POST", body=b'{"ladder": "embed", "rung": "none"}')
        assert refused.status == 400


async def test_only_an_operator_sees_and_changes(tmp_path: Path) -> None:
    keys = {**OPERATES, "pupil": Caller("class-5b", abilities=frozenset({"ask", "teach"}))}
    async with small_house(tmp_path, keys=keys) as (house, _):
        app = app_of(house)
        for key in (None, "pupil"):
            assert (await call(app, "/pages/state", key=key)).status == 401
            for path in ("/pages/override", "/pages/renew"):
                body = b'{"ladder": "embed", "rung": "spare"}'
                assert (await call(app, path, method="POST", key=key, body=body)).status == 401
        assert all(one.overridden is None for one in house.runtime.ladders())
        async with watching(app, "/pages/state", key="op") as page:
            await page.next("state")


async def test_however_many_look_the_runtime_is_asked_once(tmp_path: Path) -> None:
    clock = FakeClock()
    async with small_house(tmp_path, clock) as (house, _):
        asked = 0
        memory = house.runtime.memory

        async def counted() -> object:
            nonlocal asked
            asked += 1
            return await memory()

        house.runtime.memory = counted  # type: ignore[method-assign,assignment]
        app = app_of(house)
        async with watching(app, "/pages/state") as one:
            await one.next("state")
            async with watching(app, "/pages/state") as other:
                await other.next("state")
                assert asked == 1


async def test_one_who_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _), watching(app_of(house), "/pages/state") as page:
        await page.next("state")
        for number in range(500):
            house.turns.add(turn(str(number)))
        told = await page.next("lost")
        assert told == 500 - 64
        assert (await page.next("turn"))["timings_ms"]
        await until(None, lambda: page.chunks.qsize() >= 60)
