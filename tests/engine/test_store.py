import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aula.core.errors import BundleError, EngineError, ModelNotFoundError, StorageError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import read_manifest, write_manifest
from aula.engine.store import ORPHAN_SECONDS, RemoteStore, Store, open_store
from tests.engine.toy import toy_model

ONE = BuildOptions(threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(toy_model(tmp_path), Store(tmp_path / "store"), ONE)


def _manifest(bundle: Bundle) -> Path:
    return bundle.files.parent / "bundles" / f"{bundle.manifest.key}.json"


def _edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Store:
    """Change the manifest behind the store's back."""
    path = _manifest(bundle)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return Store(bundle.files.parent)


def test_a_manifest_is_read_back_as_it_was_written(bundle: Bundle) -> None:
    assert read_manifest(write_manifest(bundle.manifest), "m") == bundle.manifest
    store = Store(bundle.files.parent)
    assert store.find(bundle.manifest.key) == bundle
    assert store.open("toy") == bundle
    assert store.all() == [bundle]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"name": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_counts_as_absent_and_says_so_when_asked_for(bundle: Bundle, damage: bytes) -> None:
    _manifest(bundle).write_bytes(damage)
    store = Store(bundle.files.parent)
    assert store.find(bundle.manifest.key) is None
    with pytest.raises(BundleError, match="cannot be trusted"):
        store.open(bundle.manifest.key)
    with pytest.raises(BundleError, match="cannot be trusted"):
        store.open("toy")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda raw: raw.update(format=2), "has form 2"),
        (lambda raw: raw.update(parts={}), "no engine"),
        (lambda raw: raw["parts"]["model"].update(engines={}), "no engine"),
        (lambda raw: raw["parts"]["model"]["profiles"]["usual"].update(rows=[4, 2, 1]), "does not rise"),
        (lambda raw: raw["parts"]["model"]["profiles"]["usual"].update(rows=[0, 1, 2]), r"\$\.parts"),
        (lambda raw: raw["parts"]["model"].update(profiles={"usual": {}}), "no sizes for rows"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(backend="tensorflow"), "wants the backend"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(candidates=[]), "not among its candidates"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(threads="two"), r"\$\.parts.*threads"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"]["files"][0].update(digest="../" * 21 + "x"), "regex"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"]["files"][0].update(suffix="/../x.onnx"), "regex"),
        (lambda raw: raw.update(key="../../etc-0123456789abcdef"), "regex"),
        (lambda raw: raw.update(key="other-0123456789abcdef"), "says that it is other"),
    ],
)
def test_what_a_manifest_must_not_say(bundle: Bundle, change: Callable[[dict[str, Any]], object], fault: str) -> None:
    store = _edit(bundle, change)
    assert store.find(bundle.manifest.key) is None
    with pytest.raises(BundleError, match=fault):
        store.open(bundle.manifest.key)


def test_keys_cannot_lead_out_of_the_store(bundle: Bundle) -> None:
    store = Store(bundle.files.parent)
    for key in ("../store/bundles/x", "/etc/passwd", "", ".hidden", "a\\b", "a\0b"):
        assert store.find(key) is None
        with pytest.raises(EngineError):
            store.open(key)


def test_an_engine_for_another_target_or_backend_version_is_refused(bundle: Bundle) -> None:
    def old(raw: dict[str, Any]) -> None:
        raw["parts"]["model"]["engines"]["cpu"]["backend_version"] = "1999.1"

    aged = _edit(bundle, old).open("toy")
    with pytest.raises(BundleError, match=r"proven with \w+ 1999\.1; this machine has") as failure:
        aged.open()
    assert "pip install" in failure.value.next_step

    def foreign(raw: dict[str, Any]) -> None:
        raw["parts"]["model"]["engines"] = {"sm75": raw["parts"]["model"]["engines"]["cpu"]}

    with pytest.raises(BundleError, match="no engine for cpu") as failure:
        _edit(bundle, foreign).open("toy").open()
    assert failure.value.available == ("sm75",)
    assert failure.value.next_step == "aula build toy --target cpu"


def test_several_of_a_name_and_none(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    with pytest.raises(ModelNotFoundError, match="no bundle 'other'") as failure:
        store.open("other")
    assert failure.value.available == (bundle.manifest.key,)
    build(toy_model(tmp_path, revision=2), store, ONE)
    with pytest.raises(EngineError, match="2 bundles of 'toy'"):
        store.open("toy")


def test_old_orphans_go_and_everything_that_is_named_stays(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    orphan = store.files / f"{'0' * 64}.onnx"
    young = store.files / f"{'1' * 64}.onnx"
    for path in (orphan, young):
        path.write_bytes(b"x")
    for path in (orphan, bundle.model_file()):
        os.utime(path, (path.stat().st_mtime - 2 * ORPHAN_SECONDS,) * 2)
    build(toy_model(tmp_path, revision=2), store, ONE)
    assert not orphan.exists()
    assert young.exists()
    bundle.open().close()


def test_a_remote_store_serves_another_machine(tmp_path: Path) -> None:
    url = "memory://school/engines"
    here = open_store(url, tmp_path / "here")
    assert isinstance(here, RemoteStore)
    assert here.keys() == []
    built = build(toy_model(tmp_path), here, ONE)
    there = open_store(url, tmp_path / "there")
    assert there.keys() == [built.manifest.key]
    steps: list[str] = []
    found = build(toy_model(tmp_path), there, ONE, progress=lambda what, _: steps.append(what))
    assert steps == ["found"]
    assert found.files != built.files
    found.open().close()
    assert open_store(url, tmp_path / "third").open("toy").manifest == built.manifest


def test_a_remote_file_that_was_changed_is_found_when_it_arrives(tmp_path: Path) -> None:
    import fsspec

    url = "memory://spoilt/engines"
    built = build(toy_model(tmp_path), open_store(url, tmp_path / "here"), ONE)
    name = f"/spoilt/engines/files/{built.model_file().name}"
    system = fsspec.filesystem("memory")
    content = bytearray(system.cat_file(name))
    content[9] ^= 1
    system.pipe_file(name, bytes(content))
    there = open_store(url, tmp_path / "there")
    with pytest.raises(VerificationError, match="has changed"):
        there.open("toy")


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing://x"):
        open_store("nothing://x", tmp_path)
    assert open_store(f"file://{tmp_path}/s", tmp_path).folder == tmp_path / "s"
    with pytest.raises(ModelNotFoundError, match="no bundle"):
        open_store(tmp_path / "empty", tmp_path).open("toy")
