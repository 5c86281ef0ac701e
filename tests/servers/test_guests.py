"""Codes that a teacher shows: whom they let in, where to, and until when."""

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from aula.core.clock import FakeClock
from aula.core.errors import InputError, KeyRefusedError, NotAllowedError, OverloadError
from aula.servers.callers import Caller
from aula.servers.guests import ALPHABET, DOORS, LENGTH, QUOTA, Guests
from aula.servers.keys import KeyedDoorman, KeyStore

TEACHER = Caller("5b", abilities=frozenset({"ask", "teach"}), key="teacher")


def _connection(secret: str | None = None, path: str = "/v1/realtime", *, by_browser: bool = False) -> HTTPConnection:
    headers = [] if secret is None or by_browser else [(b"authorization", f"Bearer {secret}".encode())]
    offered = [f"openai-insecure-api-key.{secret}"] if by_browser else []
    return HTTPConnection({"type": "http", "path": path, "headers": headers, "subprotocols": offered})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys(tmp_path: Path, clock: FakeClock) -> KeyStore:
    store = KeyStore(tmp_path / "keys.json")
    store.create("5b", abilities=("ask", "teach"))
    return store


@pytest.fixture
def host(keys: KeyStore) -> Caller:
    return keys.read()[0].caller()


@pytest.fixture
def guests(keys: KeyStore, clock: FakeClock) -> Guests:
    doorman = KeyedDoorman(keys, clock)
    return Guests(doorman, clock, doorman.holds, wall=lambda: 1000.0)


def test_a_guest_is_of_the_class_and_may_ask_alone(guests: Guests, host: Caller) -> None:
    invitation = guests.invite(host, 7200)
    assert (len(invitation.code), invitation.until) == (LENGTH, 8200.0)
    assert set(invitation.code) <= set(ALPHABET)
    guest = guests.admit(_connection(invitation.code), "ask")
    assert (guest.tenant, guest.abilities, guest.key) == ("5b", frozenset({"ask"}), f"{host.key}/guest")
    for ability in ("teach", "operate", "infer", "speak"):
        with pytest.raises(NotAllowedError):
            guests.admit(_connection(invitation.code), ability)


@pytest.mark.parametrize("typed", ["{0}-{1}", "{0} {1}", "{0}{1}"])
def test_a_code_may_be_typed_as_people_type(guests: Guests, host: Caller, typed: str) -> None:
    code = guests.invite(host, 60).code
    brought = typed.format(code[:5], code[5:]).lower()
    assert guests.admit(_connection(brought), "ask").tenant == "5b"
    assert guests.admit(_connection(code, by_browser=True), "ask").tenant == "5b"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/realtime/client_secrets", "/pages/invitation", "/v1/realtime/"]
)
def test_it_opens_what_the_students_page_asks_and_nothing_else(guests: Guests, host: Caller, path: str) -> None:
    """Above all no secret that outlives the code."""
    code = guests.invite(host, 60).code
    for door in DOORS:
        guests.admit(_connection(code, door), "ask")
    with pytest.raises(NotAllowedError):
        guests.admit(_connection(code, path), "ask")


def test_a_code_ends_with_its_time(guests: Guests, host: Caller, clock: FakeClock) -> None:
    code = guests.invite(host, 60).code
    clock.advance(59)
    guests.admit(_connection(code), "ask")
    clock.advance(1)
    with pytest.raises(KeyRefusedError):
        guests.admit(_connection(code), "ask")
    assert guests.invitation(host) is None


def test_a_code_ends_when_its_teacher_says_so_or_makes_another(guests: Guests, host: Caller) -> None:
    first = guests.invite(host, 60).code
    second = guests.invite(host, 60).code
    with pytest.raises(KeyRefusedError):
        guests.admit(_connection(first), "ask")
    shown = guests.invitation(host)
    assert shown is not None
    assert shown.code == second
    guests.end(host)
    with pytest.raises(KeyRefusedError):
        guests.admit(_connection(second), "ask")


def test_a_code_ends_with_the_key_that_it_was_made_with(guests: Guests, host: Caller, keys: KeyStore) -> None:
    code = guests.invite(host, 60).code
    keys.revoke(str(host.key))
    with pytest.raises(KeyRefusedError):
        guests.admit(_connection(code), "ask")


@pytest.mark.parametrize("code", ["ABCDEFGHJK", "2222222222", "abcde-fghjk"])
def test_a_code_that_nobody_made_opens_nothing(guests: Guests, host: Caller, code: str) -> None:
    guests.invite(host, 60)
    with pytest.raises(KeyRefusedError):
        guests.admit(_connection(code), "ask")


def test_a_key_goes_by_to_who_knows_keys(keys: KeyStore, clock: FakeClock) -> None:
    _, secret = keys.create("9c", abilities=("infer",))
    doorman = KeyedDoorman(keys, clock)
    guests = Guests(doorman, clock, doorman.holds)
    assert guests.admit(_connection(secret, "/v2/models"), "infer").tenant == "9c"
    assert not guests.is_open


def test_a_guest_who_stayed_asks_again_while_the_code_holds(guests: Guests, host: Caller, clock: FakeClock) -> None:
    guest = guests.admit(_connection(guests.invite(host, 60).code), "ask")
    guests.again(guest)
    clock.advance(60)
    with pytest.raises(KeyRefusedError):
        guests.again(guest)
    guests.invite(host, 60)
    guests.again(guest)
    for _ in range(QUOTA.burst - 1):
        guests.again(guest)
    with pytest.raises(OverloadError):
        guests.again(guest)
    assert guests.refused == {"rate": 1}
    guests.end(host)
    with pytest.raises(KeyRefusedError):
        guests.again(guest)


def test_who_brought_a_key_asks_again_by_that(guests: Guests, host: Caller, keys: KeyStore) -> None:
    guests.again(host)
    keys.revoke(str(host.key))
    with pytest.raises(KeyRefusedError):
        guests.again(host)


def test_one_code_does_not_take_all_lines(guests: Guests, host: Caller) -> None:
    code = guests.invite(host, 60).code
    for _ in range(QUOTA.burst):
        guests.admit(_connection(code), "ask")
    with pytest.raises(OverloadError):
        guests.admit(_connection(code), "ask")
    assert guests.refused == {"rate": 1}


@pytest.mark.parametrize(
    ("who", "seconds", "error"),
    [
        (TEACHER, 1, InputError),
        (TEACHER, 1e9, InputError),
        (Caller("5b", abilities=frozenset({"teach"}), key="mute"), 60, NotAllowedError),
        (Caller("5b"), 60, InputError),
    ],
)
def test_what_cannot_be_an_invitation(guests: Guests, who: Caller, seconds: float, error: Any) -> None:
    with pytest.raises(error):
        guests.invite(who, seconds)


def test_where_nobody_needs_a_key_nobody_needs_a_code(tmp_path: Path, clock: FakeClock) -> None:
    doorman = KeyedDoorman(KeyStore(tmp_path / "none.json"), clock)
    guests = Guests(doorman, clock, doorman.holds)
    assert guests.is_open
    assert guests.admit(_connection("ABCDEFGHJK"), "teach").tenant == "local"
    with pytest.raises(InputError):
        guests.invite(TEACHER, 60)
