import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aula.core.errors import BundleError, EngineError, ModelNotFoundError, StorageError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.leftovers import ORPHAN_SECONDS, PART_SECONDS, STALE_SECONDS
from aula.engine.manifest import Manifest, read_manifest, sealed, write_manifest
from aula.engine.recipe import Model
from aula.engine.remote import RemoteStore
from aula.engine.store import Store, open_store
from tests.engine.toy import toy_graph, toy_model, toy_recipe

ONE = BuildOptions(threads=1)
DEVICE = {
    "name": "NVIDIA L4",
    "capability": "8.9",
    "driver": "570.1",
    "compatibility": "exact",
    "version_compatible": False,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(toy_model(tmp_path), Store(tmp_path / "store"), ONE)


def _manifest(bundle: Bundle) -> Path:
    return bundle.files.parent / "bundles" / f"{bundle.manifest.key}.json"


def _age(path: Path, seconds: float) -> None:
    """As if it had been written that long ago."""
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def _spoil(path: Path) -> None:
    """Change one byte and keep the size."""
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)


def _edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Store:
    """Change the manifest behind the store's back."""
    path = _manifest(bundle)
    raw = json.loads(path.read_text())
    change(raw)
    try:
        # A forger computes the seal anew.
        path.write_bytes(write_manifest(sealed(msgspec.convert(raw, Manifest))))
    except msgspec.ValidationError:
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
        (lambda raw: raw.update(format=3), "has form 3"),
        (lambda raw: raw.update(parts={}), "no engine"),
        (lambda raw: raw["parts"]["model"].update(engines={}), "no engine"),
        (
            lambda raw: raw["parts"]["model"]["engines"]["cpu"]["profiles"]["usual"].update(rows=[4, 2, 1]),
            "does not rise",
        ),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"]["profiles"]["usual"].update(rows=[0, 1, 2]), r"\$\.parts"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(profiles={"usual": {}}), "no sizes for rows"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(backend="tensorflow"), "wants the backend"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(candidates=[]), "not among its candidates"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(threads="two"), r"\$\.parts.*threads"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(plans={"usual": "0" * 64}), "not among its files"),
        (
            lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(plans={"many": "0" * 64}),
            "do not match: many, usual",
        ),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(device=DEVICE | {"capability": "8"}), "regex"),
        (lambda raw: raw["parts"]["model"]["engines"]["cpu"].update(device=DEVICE | {"compatibility": "any"}), "any"),
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


def test_the_newest_of_a_name_is_opened(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    with pytest.raises(ModelNotFoundError, match="no bundle 'other'") as failure:
        store.open("other")
    assert failure.value.available == (bundle.manifest.key,)
    other = build(toy_model(tmp_path, revision=2), store, ONE)
    _age(_manifest(other), 60)
    assert store.open("toy") == bundle
    _age(_manifest(bundle), 120)
    assert store.open("toy") == other
    assert store.keys_of("toy") == [other.manifest.key, bundle.manifest.key]
    _manifest(other).write_bytes(b"spoilt")
    assert store.open("toy") == bundle


def test_old_orphans_go_and_everything_that_is_named_stays(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    orphan = store.files / f"{'0' * 64}.onnx"
    young = store.files / f"{'1' * 64}.onnx"
    for path in (orphan, young):
        path.write_bytes(b"x")
    for path in (orphan, bundle.model_file()):
        _age(path, 2 * ORPHAN_SECONDS)
    build(toy_model(tmp_path, revision=2), store, ONE)
    assert not orphan.exists()
    assert young.exists()
    bundle.open().close()


def test_engines_of_a_newer_aula_stay(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    manifest = _manifest(bundle)
    manifest.write_text(manifest.read_text().replace('"format":', '"newer": {}, "form":'))
    for record in store.parts.iterdir():
        record.unlink()
    engine = bundle.model_file()
    _age(engine, 2 * ORPHAN_SECONDS)
    _other(tmp_path, store)
    assert store.find(bundle.manifest.key) is None
    assert engine.exists()
    manifest.unlink()
    _other(tmp_path, store, revision=2)
    assert not engine.exists()


def test_where_a_record_cannot_be_understood_nothing_is_removed(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    orphan = store.files / f"{'0' * 64}.onnx"
    orphan.write_bytes(b"x")
    _age(orphan, 2 * ORPHAN_SECONDS)
    (store.bundles / "of-another-age.msgpack").write_bytes(b"\x93\x01")
    build(toy_model(tmp_path, revision=2), store, ONE)
    assert orphan.exists()


def test_forgotten_parts_and_half_written_records_go(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    (record,) = store.parts.iterdir()
    _age(record, 2 * PART_SECONDS)
    halves = [folder / ".draft-killed" for folder in (store.bundles, store.parts)]
    for half in halves:
        half.write_bytes(b"half")
        _age(half, 2 * STALE_SECONDS)
    build(toy_model(tmp_path, revision=2), store, ONE)
    assert not any(path.exists() for path in (record, *halves))
    bundle.open().close()


def test_a_draft_that_is_held_stays_and_one_that_was_left_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.draft() as held:
        left = store.folder / ".draft-killed"
        left.mkdir()
        for draft in (held, left):
            _age(draft, 2 * STALE_SECONDS)
        with Store(store.folder).draft():
            assert held.exists()
            assert not left.exists()
    assert list(store.folder.glob(".draft-*")) == []


def test_a_builder_is_not_told_that_spoilt_bytes_were_found(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    _spoil(bundle.files / bundle.engine().files[0].name)
    assert store.find(bundle.manifest.key) is None
    (record,) = store.parts.iterdir()
    assert store.find_part(record.stem) is None
    build(toy_model(tmp_path), store, ONE).open().close()


def test_a_bundle_is_removed_with_all_that_only_it_needs(bundle: Bundle, tmp_path: Path) -> None:
    store = Store(bundle.files.parent)
    twin = build(toy_model(tmp_path, revision=2), store, ONE)  # the same engine, proven for other inputs
    shared = bundle.engine().files[0].name == twin.engine().files[0].name
    removed = store.remove(bundle.manifest.key)
    assert (removed.key, removed.freed_bytes == 0) == (bundle.manifest.key, shared)
    twin.open().close()
    size = twin.model_file().stat().st_size
    assert store.remove(twin.manifest.key).freed_bytes == size
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []
    with pytest.raises(ModelNotFoundError, match="no bundle"):
        store.remove(twin.manifest.key)


def test_a_bundle_whose_files_were_removed_meanwhile_is_not_published(bundle: Bundle) -> None:
    store = Store(bundle.files.parent)
    store.remove(bundle.manifest.key)
    with pytest.raises(StorageError, match="while it was built"):
        store.publish(bundle.manifest)
    assert store.keys() == []


def test_a_spoilt_bundle_can_be_removed(bundle: Bundle) -> None:
    store = Store(bundle.files.parent)
    _manifest(bundle).write_bytes(b"{")
    assert store.keys_of("toy") == [bundle.manifest.key]
    store.remove(bundle.manifest.key)
    assert store.keys() == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        built = build(toy_model(tmp_path), Store(tmp_path / "store"), ONE)
    finally:
        os.umask(before)
    paths = [path for path in built.files.parent.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o640}


def test_what_cannot_be_read_is_not_said_to_be_unwritable(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "toy-0123456789abcdef.json").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        Store(tmp_path).open("toy")


def test_a_remote_store_serves_another_machine(tmp_path: Path) -> None:
    here = _remote(tmp_path, "here")
    assert here.keys() == []
    built = build(toy_model(tmp_path), here, ONE)
    there = _remote(tmp_path, "there")
    assert there.keys() == [built.manifest.key]
    steps: list[str] = []
    found = build(toy_model(tmp_path), there, ONE, progress=lambda what, _: steps.append(what))
    assert steps == ["found"]
    assert found.files != built.files
    found.open().close()
    assert _remote(tmp_path, "third").open("toy").manifest == built.manifest


def test_opening_one_remote_bundle_brings_only_that_one(tmp_path: Path) -> None:
    here, there = _remote(tmp_path, "here"), _remote(tmp_path, "there")
    first = build(toy_model(tmp_path), here, ONE)
    _other(tmp_path, here)
    there.open(first.manifest.key)
    assert [path.stem for path in there.bundles.iterdir()] == [first.manifest.key]
    assert there.all() == [Bundle(first.manifest, there.files)]


def test_a_spoilt_remote_bundle_stands_in_nobodys_way(tmp_path: Path) -> None:
    here, there = _remote(tmp_path, "here"), _remote(tmp_path, "there")
    good, bad = build(toy_model(tmp_path), here, ONE), _other(tmp_path, here)
    _spoil_remote(bad)
    assert there.find(bad.manifest.key) is None
    with pytest.raises(VerificationError, match="has changed"):
        there.open("other")
    assert there.open("toy").manifest == good.manifest
    _system().rm_file(f"{ROOT}/files/{bad.model_file().name}")
    with pytest.raises(VerificationError, match="is missing from memory://"):
        there.open("other")


def test_building_again_repairs_the_remote(tmp_path: Path) -> None:
    here = _remote(tmp_path, "here")
    built = build(toy_model(tmp_path), here, ONE)
    _spoil_remote(built)
    build(toy_model(tmp_path), here, BuildOptions(threads=1, rebuild=True))
    _remote(tmp_path, "there").open("toy").open().close()


@pytest.mark.parametrize("lost", ["bundles", "files"])
def test_a_build_that_is_found_here_is_there_for_others_too(tmp_path: Path, lost: str) -> None:
    here = _remote(tmp_path, "here")
    build(toy_model(tmp_path), here, ONE)
    _system().rm(f"{ROOT}/{lost}", recursive=True)
    build(toy_model(tmp_path), here, ONE)
    _remote(tmp_path, "there").open("toy").open().close()


def test_without_the_network_what_was_fetched_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = _remote(tmp_path, "here")
    built = build(toy_model(tmp_path), here, ONE)

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    for method in ("exists", "ls", "cat_file"):
        monkeypatch.setattr(type(_system()), method, gone)
    for name in ("toy", built.manifest.key):
        assert here.open(name) == built
    with pytest.raises(StorageError, match="no route to host"):
        here.open("other")
    with pytest.raises(StorageError, match="no route to host"):
        build(toy_model(tmp_path), here, ONE)


def test_a_remote_bundle_is_removed_there_and_here(tmp_path: Path) -> None:
    here = _remote(tmp_path, "here")
    built, other = build(toy_model(tmp_path), here, ONE), _other(tmp_path, here)
    shared = built.engine().files[0].digest == other.engine().files[0].digest
    assert (here.remove(built.manifest.key).freed_bytes == 0) == shared
    assert here.keys() == Store(here.folder).keys() == [other.manifest.key]
    _remote(tmp_path, "there").open("other").open().close()
    here.remove(other.manifest.key)
    assert _system().find(ROOT) == []


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing://x"):
        open_store("nothing://x", tmp_path)
    with pytest.raises(StorageError, match="~nobody-of-that-name"):
        open_store("~nobody-of-that-name/engines", tmp_path)
    with pytest.raises(ModelNotFoundError, match="no bundle"):
        open_store(tmp_path / "empty", tmp_path).open("toy")


def test_file_urls_are_folders_of_this_machine(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b", f"FILE:{tmp_path}/a b"):
        assert open_store(url, tmp_path).folder == tmp_path / "a b"
    for url in ("file://elsewhere/a", "file://a", "file:", "file:///a#b", "file:///a?b", "file:///a%00b", "file://[a"):
        with pytest.raises(StorageError, match="names no folder"):
            open_store(url, tmp_path)


ROOT = "/school/engines"


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    for name in _system().find("/"):
        _system().rm_file(name)


def _system() -> Any:
    import fsspec

    return fsspec.filesystem("memory")


def _remote(folder: Path, machine: str) -> RemoteStore:
    store = open_store(f"memory:/{ROOT}", folder / machine)
    assert isinstance(store, RemoteStore)
    return store


def _other(folder: Path, store: Store, **changes: Any) -> Bundle:
    """A bundle whose engine is no other's."""
    recipe = toy_recipe(folder, name="other", write_graph=_other_graph, **changes)
    return build(Model.of(recipe), store, ONE)


def _other_graph() -> Any:
    graph = toy_graph()
    graph.producer_name = "another"
    graph.graph.name = "another"
    return graph


def _spoil_remote(bundle: Bundle) -> None:
    name = f"{ROOT}/files/{bundle.engine().files[0].name}"
    content = bytearray(_system().cat_file(name))
    content[9] ^= 1
    _system().pipe_file(name, bytes(content))
