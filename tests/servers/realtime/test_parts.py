"""Secrets, the outbox, hypotheses, and names of the beta."""

import asyncio
import json

import pytest

from aula.core.clock import FakeClock
from aula.servers.callers import Caller
from aula.servers.realtime import beta, secrets
from aula.servers.realtime.errors import ClientError
from aula.servers.realtime.options import Options
from aula.servers.realtime.outbox import Outbox, OutboxFullError
from aula.servers.realtime.secrets import ClientSecrets
from aula.servers.realtime.transcripts import Hypotheses
from aula.servers.realtime.wire import Wire


def test_a_secret_opens_until_it_expires_and_is_kept_by_its_hash_alone() -> None:
    clock = FakeClock()
    kept = ClientSecrets(clock, lambda: 1_000.5)
    caller = Caller("class-5b")
    minted = kept.mint(caller, {"type": "realtime"}, 30)
    assert minted.expires_at == 1030
    found = kept.find(minted.value)
    assert found is not None
    assert (found.caller, found.session) == (caller, {"type": "realtime"})
    secret = minted.value.split("_", 2)[2]
    assert secret not in repr(vars(kept))
    for wrong in ("", "ek_", minted.value[:-2], minted.value + "A", minted.value.removeprefix("ek_"), "ek_é_ü"):
        assert kept.find(wrong) is None
    clock.advance(30)
    assert kept.find(minted.value) is None


def test_secrets_are_bounded_and_a_tenant_that_asks_for_too_many_loses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "MOST_OF_A_TENANT", 3)
    monkeypatch.setattr(secrets, "MOST_KEPT", 5)
    clock = FakeClock()
    kept = ClientSecrets(clock)
    other = kept.mint(Caller("quiet"), {}, 60)
    greedy = [kept.mint(Caller("greedy"), {}, 60) for _ in range(6)]
    assert [kept.find(one.value) is not None for one in greedy] == [False, False, False, True, True, True]
    assert kept.find(other.value) is not None
    for tenant in "abc":
        kept.mint(Caller(tenant), {}, 60)
    assert len(kept) == 5
    clock.advance(60)
    kept.mint(Caller("late"), {}, 60)
    assert len(kept) == 1


async def test_the_outbox_sends_in_order_waits_for_room_and_overflows() -> None:
    sent: list[str] = []
    gate = asyncio.Event()

    async def send(text: str) -> None:
        await gate.wait()
        sent.append(text)

    box = Outbox(100)
    sending = asyncio.create_task(box.send_all(send))
    await box.room()
    for text in ("a" * 30, "b" * 30):
        box.put(text)
    room = asyncio.create_task(box.room())
    await asyncio.sleep(0)
    assert not room.done()
    with pytest.raises(OutboxFullError):
        box.put("c" * 41)
    gate.set()
    await room
    box.put("c")
    async with asyncio.timeout(20):
        while box.statistics().waiting:  # noqa: ASYNC110 - the box tells nobody
            await asyncio.sleep(0)
    assert [text[0] for text in sent] == ["a", "b", "c"]
    assert box.statistics().sent == 3
    sending.cancel()
    box.put("left")
    assert box.rest() == ["left"]


def test_hypotheses_grow_and_take_nothing_back() -> None:
    told = Hypotheses()
    heard = ["what", "what is", "that is", "what is inertia", "what is inertia and"]
    assert [told.heard("a", text) for text in heard] == ["", "what", "", "", " is inertia"]
    assert told.final("a", "what is inertia and why") == " and why"
    assert told.final("a", "once more") == "once more"


def test_a_session_says_the_same_in_both_names() -> None:
    options = Options("small").updated(
        {
            "audio": {
                "input": {
                    "format": {"type": "audio/pcma"},
                    "turn_detection": None,
                    "transcription": {"language": "en"},
                },
                "output": {"format": {"type": "audio/pcmu"}, "voice": "en-gb", "speed": 1.25},
            },
            "max_output_tokens": 100,
        }
    )
    flat = beta.to_beta({"type": "session.updated", "session": options.shown()})
    assert flat is not None
    session = flat["session"]
    assert session["input_audio_format"] == "g711_alaw"
    assert session["output_audio_format"] == "g711_ulaw"
    assert session["turn_detection"] is None
    assert session["max_response_output_tokens"] == 100
    sent_back = {name: session[name] for name in session if name not in ("object", "id")}
    again = beta.to_ga({"type": "session.update", "session": sent_back})
    assert Options("small").updated(again["session"]).shown() == options.shown()
    with pytest.raises(ClientError, match="pcm16"):
        beta.to_ga({"type": "session.update", "session": {"input_audio_format": "mp3"}})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"', "[" * 5000])
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(ClientError):
        Wire(speaks_beta=False, most=10_000).read(text)


def test_an_event_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ClientError, match="20 characters"):
        Wire(speaks_beta=False, most=10).read('"xxxxxxxxxxxxxxxxxx"')


def test_what_the_beta_has_no_event_for_is_not_sent() -> None:
    wire = Wire(speaks_beta=True, most=10)
    assert wire.write({"type": "conversation.item.done", "item": {}}) is None
    delta = wire.write({"type": "response.output_text.delta", "delta": "x"})
    assert delta is not None
    assert json.loads(delta)["type"] == "response.text.delta"
