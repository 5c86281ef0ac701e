from pathlib import Path
from typing import Any

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import InputError, OverloadError, SettingsError
from aula.core.settings import Settings
from aula.core.types import Capability, Context
from aula.runtime import Rules, open_runtime
from aula.scheduling.admission import Quota
from aula.scheduling.queue import LEAST_SHARES
from tests.serving.hand import House, by_hand, rung, runtime, start, work

TENANTS = """
[class-5b]
rate = 5
burst = 20
weight = 2.0

["class 6"]
concurrency = 1
"""


def _settings(tmp_path: Path, content: str, **more: Any) -> Settings:
    path = tmp_path / "tenants.toml"
    path.write_text(content)
    return Settings({"tenants.file": str(path), **more})


def test_defaults_limit_nobody_and_are_the_scheduler_s_own() -> None:
    rules = Rules.from_settings(Settings())
    assert (rules.usual, rules.quotas, rules.shares) == (Quota(), {}, dict(LEAST_SHARES))
    assert not any(rules.ladders.values())


def test_settings_and_the_file_of_tenants_become_rules(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, TENANTS, **{"tenants.rate": 2.0, "tiers.batch": 0.2, "ladder.speak": "espeak-ng, other"}
    )
    rules = Rules.from_settings(settings)
    assert rules.quotas == {"class-5b": Quota(rate=5, burst=20), "class 6": Quota(concurrency=1)}
    assert rules.weights == {"class-5b": 2.0, "class 6": 1.0}
    assert (rules.usual.rate, rules.shares["batch"]) == (2.0, 0.2)
    assert rules.ladders[Capability.SPEAK] == ("espeak-ng", "other")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("rate = 5", "no table"),
        ("[a]\nrat = 5", "rate, burst"),
        ("[a]\nrate = -1", r"\[a\] rate is -1"),
        ("[a]\nrate = nan", "nan"),
        ("[a]\nburst = 2.5", "whole number"),
        ("[a]\nrate = true", "True"),
        ("[a", "not TOML"),
    ],
)
def test_a_bad_file_of_tenants_is_named(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        Rules.from_settings(_settings(tmp_path, content))


def test_an_absent_file_and_shares_beyond_a_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Rules.from_settings(Settings({"tenants.file": str(tmp_path / "absent.toml")}))
    with pytest.raises(SettingsError, match=r"sum to 1\.2"):
        Settings({"tiers.question": 0.9})


def test_a_ladder_of_unknown_rungs_is_refused_when_the_runtime_opens(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="espeak-ng"):
        open_runtime(Settings({"home": str(tmp_path), "ladder.speak": "siren"}))


async def test_tenants_get_what_the_file_gives_them_and_strangers_only_where_they_may() -> None:
    with by_hand():
        clock = FakeClock()
        rules = Rules({"known": Quota(rate=1.0, burst=1)}, strict=True)
        running = runtime(rung("best", House(clock)), clock=clock, rules=rules)
        tasks = [start(running, Capability.EMBED, ["a"], Context(tenant=name)) for name in ("known", "known", "other")]
        await work()
        assert tasks[0].exception() is None
        assert isinstance(tasks[1].exception(), OverloadError)
        assert isinstance(tasks[2].exception(), InputError)
