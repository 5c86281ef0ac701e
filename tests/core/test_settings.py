from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.core.errors import SettingsError
from aula.core.settings import TABLE, Setting, Settings, load_settings


def test_defaults_hold_without_file_or_environment() -> None:
    assert load_settings({}, ()) == Settings()


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_every_setting_has_help_and_a_default_that_passes_its_own_check(setting: Setting) -> None:
    assert setting.help
    assert setting.parse(setting.default, "the table") == setting.default


def test_the_environment_beats_the_file_and_later_files_beat_earlier(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('course = "one"\nthreads = 3\n[vad]\nstart = 0.6\n')
    second.write_text('course = "two"\n')
    settings = load_settings({"AULA_THREADS": "4"}, (first, second))
    assert settings.text("course") == "two"
    assert settings.whole("threads") == 4
    assert settings.number("vad.start") == 0.6


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"AULA_THREADS": "many"}, "whole number"),
        ({"AULA_THREADS": "-1"}, "outside"),
        ({"AULA_VAD_START": "nan"}, "outside"),
        ({"AULA_VAD_START": "0.2"}, "not below"),
        ({"AULA_ISOLATE": "sometimes"}, "isolate is 'sometimes'"),
    ],
)
def test_bad_values_are_refused_by_name(environment: dict[str, str], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault) as caught:
        load_settings(environment, ())
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("content", "fault"), [(b"corse = 'x'", "no setting"), (b"course = ", "not TOML"), (b"\xff\xfe\x00", "not TOML")]
)
def test_bad_files_are_refused_by_name(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "aula.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=fault) as caught:
        load_settings({}, (path,))
    assert "aula.toml" in str(caught.value)


@given(st.sampled_from(TABLE), st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none()))
def test_any_value_is_taken_or_refused_with_a_typed_error(setting: Setting, raw: object) -> None:
    try:
        value = setting.parse(raw, "a test")
    except SettingsError:
        return
    assert type(value) is type(setting.default)


def test_replaced_changes_only_what_is_named() -> None:
    settings = Settings().replaced(vad__start=0.7)
    assert settings.number("vad.start") == 0.7
    assert settings != Settings()
    assert "vad.start" in repr(settings)
