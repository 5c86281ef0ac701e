"""The reader of manifests, fed with what nobody would write."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aula.core.errors import BundleError
from aula.engine.build import BuildOptions, build
from aula.engine.manifest import Manifest, read_manifest, read_part, write_manifest, write_part
from aula.engine.store import Store
from tests.engine.toy import toy_model


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("toy")
    return build(toy_model(folder), Store(folder / "store"), BuildOptions(threads=1)).manifest


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("../../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _read(content: bytes) -> None:
    try:
        found = read_manifest(content, "fuzzed")
    except BundleError:
        return
    for part in found.parts.values():
        for engine in part.engines.values():
            assert engine.chosen
            assert all(Path(file.name).name == file.name for file in engine.files)


@given(content=st.binary(max_size=200))
def test_bytes(content: bytes) -> None:
    _read(content)


@given(value=VALUES)
def test_any_json(value: Any) -> None:
    _read(json.dumps(value).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_with_one_value_exchanged(manifest: Manifest, data: st.DataObject) -> None:
    raw = json.loads(write_manifest(manifest))
    place: Any = raw
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(place[key], (dict, list)) and len(place[key]) > 0
        if deeper and data.draw(st.integers(0, 4)):
            place = place[key]
            continue
        if data.draw(st.booleans()) and isinstance(place, dict):
            del place[key]
        else:
            place[key] = data.draw(VALUES)
        break
    _read(json.dumps(raw).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_with_one_byte_exchanged_or_cut(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(write_manifest(manifest))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    _read(bytes(content))
    _read(bytes(content[:place]))


def test_a_part_is_read_back_as_it_was_written(manifest: Manifest) -> None:
    part = manifest.parts["model"]
    assert read_part(write_part(part), "part") == part
    with pytest.raises(BundleError):
        read_part(b"{}", "part")
