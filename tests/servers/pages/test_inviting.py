from pathlib import Path

from aula.servers.callers import Caller
from tests.servers.pages.people import app_of, call, small_house

KEYS = {
    "teacher": Caller("class-5b", abilities=frozenset({"ask", "teach"}), key="teacher-key"),
    "pupil": Caller("class-5b", abilities=frozenset({"ask"}), key="pupil-key"),
}
PATH = "/pages/invitation"


async def test_a_teacher_makes_a_code_sees_it_again_and_ends_it(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        app = app_of(house)
        assert (await call(app, "/pages/me?for=teach", key="teacher")).json["invites"]
        assert (await call(app, PATH, key="teacher")).json == {"code": None, "until": None}
        made = await call(app, PATH, method="POST", key="teacher", body=b'{"minutes": 120}')
        assert made.headers["cache-control"] == "no-store"
        assert (await call(app, PATH, key="teacher")).json == made.json
        code = made.json["code"]
        me = (await call(app, "/pages/me?for=ask", key=code)).json
        assert (me["tenant"], me["abilities"]) == ("class-5b", ["ask"])
        assert (await call(app, "/pages/me?for=teach", key=code)).status == 403
        assert (await call(app, "/pages/questions", key=code)).status == 403
        assert (await call(app, "/pages/state", key=code)).status == 403
        assert (await call(app, PATH, key=code)).status == 403
        assert (await call(app, PATH, method="DELETE", key="teacher")).json["code"] is None
        assert (await call(app, "/pages/me?for=ask", key=code)).status == 401


async def test_who_does_not_teach_invites_nobody(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        app = app_of(house)
        for method in ("GET", "POST", "DELETE"):
            assert (await call(app, PATH, method=method, key="pupil", body=b'{"minutes": 60}')).status == 401
            assert (await call(app, PATH, method=method, body=b'{"minutes": 60}')).status == 401


async def test_a_body_that_is_none_is_told(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        app = app_of(house)
        for body in (b"", b"[]", b'{"minutes": "long"}', b'{"minutes": 0}', b'{"minutes": 60, "for": "ever"}'):
            assert (await call(app, PATH, method="POST", key="teacher", body=body)).status == 400, body


async def test_without_keys_there_is_nothing_to_invite_with(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        app = app_of(house)
        assert not (await call(app, "/pages/me")).json["invites"]
        assert (await call(app, PATH)).status == 400
        assert (await call(app, PATH, method="POST", body=b'{"minutes": 60}')).status == 400
