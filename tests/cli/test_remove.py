import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aula.cli.remove import remove
from aula.core.errors import EngineError, ModelNotFoundError
from aula.engine.build import BuildOptions, build
from aula.engine.store import Store
from tests.engine.toy import toy_model


def _remove(*arguments: str) -> Result:
    return CliRunner().invoke(remove, arguments, catch_exceptions=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AULA_HOME", str(tmp_path))
    store = Store(tmp_path / "engines")
    build(toy_model(tmp_path), store, BuildOptions(threads=1))
    return store


def test_a_bundle_is_removed_by_its_models_name(store: Store) -> None:
    (key,) = store.keys()
    ended = _remove("toy")
    assert (ended.exit_code, store.keys()) == (0, [])
    assert f"Removed {key}" in ended.output


def test_of_several_one_is_named_by_its_key(store: Store, tmp_path: Path) -> None:
    (key,) = store.keys()
    build(toy_model(tmp_path, revision=2), store, BuildOptions(threads=1))
    ended = _remove("toy")
    assert isinstance(ended.exception, EngineError)
    assert set(ended.exception.available) == set(store.keys())
    told = json.loads(_remove(key, "--json").output)
    assert (told["key"], told["store"]) == (key, str(store))
    assert len(store.keys()) == 1


@pytest.mark.parametrize("name", ["other", "../engines", "", "a\0b", "toy-0123456789abcdef", "~x", "a" * 5000])
def test_what_is_not_there_is_said(store: Store, name: str) -> None:
    ended = _remove("--", name)
    assert isinstance(ended.exception, ModelNotFoundError)
    assert len(store.keys()) == 1
