"""What other programs fetched into the cache that they share is found without a network, and used where it lies."""

import json
import shutil
from pathlib import Path

import pytest

from aula.core.errors import AulaError, DownloadError
from aula.core.settings import Settings
from aula.engine.recipe import Origin
from aula.models import hub
from aula.models.catalogue import find_model
from aula.models.checkpoints import INDEX, WEIGHTS
from aula.models.hub_cache import Cached, cache_folder, find_cached
from aula.models.whisper_transcriber import WhisperTranscriber, find_places
from tests.models.fake_hub import only_this_machine
from tests.models.whisper_thin_model import thin_checkpoint

NAME = "school/whisper-thin"
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two commits of one model; nothing but this machine may be asked."""
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def repository(cache: Path) -> Path:
    return cached(cache, OLD, NEW)


def cached(cache: Path, *commits: str) -> Path:
    """As huggingface_hub writes it: blobs, snapshots of links, and a branch."""
    repository = cache / "models--school--whisper-thin"
    for number, commit in enumerate(commits):
        whole = thin_checkpoint(cache / f"made-{number}", seed=number).folder
        for file in whole.iterdir():
            blob = repository / "blobs" / f"{number}-{file.name}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            file.rename(blob)
            link = repository / "snapshots" / commit / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../..") / "blobs" / blob.name)
        whole.rmdir()
    for branch in ("main", "refs/pr/1"):
        (repository / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commits[0], encoding="ascii")
    return repository


@pytest.mark.parametrize(
    ("told", "where"),
    [
        ({"HF_HUB_CACHE": "/one", "HF_HOME": "/two"}, "/one"),
        ({"HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/two"}, "/older"),
        ({"HF_HOME": "/two", "XDG_CACHE_HOME": "/three"}, "/two/hub"),
        ({"XDG_CACHE_HOME": "/three"}, "/three/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_it_lies_where_huggingface_hub_has_it(
    told: dict[str, str], where: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(where).expanduser()


def test_it_is_the_librarys_own_layout(repository: Path, cache: Path) -> None:
    """What huggingface_hub itself finds in the folder that these tests write."""
    from huggingface_hub import try_to_load_from_cache

    for revision, commit in (("main", OLD), ("refs/pr/1", OLD), (NEW, NEW)):
        found = try_to_load_from_cache(NAME, "config.json", cache_dir=cache, revision=revision)
        assert found == str(repository / "snapshots" / commit / "config.json")


def test_a_branch_a_commit_and_the_start_of_one_are_found(repository: Path) -> None:
    meant = {None: OLD, "main": OLD, "refs/pr/1": OLD, NEW: NEW, NEW[:7]: NEW}
    for revision, commit in meant.items():
        assert find_cached(NAME, revision) == Cached(repository / "snapshots" / commit, commit)
    for revision in ("v1", NEW[:6], "c" * 40, "../refs/main", "/etc/hostname"):
        assert find_cached(NAME, revision) == f"{repository} has no revision {revision}"
    assert find_cached("school/other") == f"{repository.parent / 'models--school--other'} is not there"


def test_where_only_commits_were_asked_for_the_newest_is_taken(repository: Path) -> None:
    shutil.rmtree(repository / "refs")
    (repository / "snapshots" / NEW).touch()
    assert find_cached(NAME) == Cached(repository / "snapshots" / NEW, NEW)


def test_what_is_not_whole_is_passed_over_and_told(repository: Path) -> None:
    snapshot = repository / "snapshots" / OLD
    (repository / "blobs" / f"0-{WEIGHTS}").unlink()
    assert find_cached(NAME) == f"{snapshot} has no {WEIGHTS}", "the link is there, what it points to is not"
    (snapshot / WEIGHTS).unlink()
    index = {"weight_map": {"model.encoder.conv1.weight": "model-00001-of-00002.safetensors"}}
    (snapshot / INDEX).write_text(json.dumps(index))
    assert "names model-00001-of-00002.safetensors" in str(find_cached(NAME))
    (repository / "blobs" / "0-config.json").unlink()
    assert find_cached(NAME) == f"{snapshot} has no config.json"
    assert isinstance(find_cached(NAME, NEW), Cached), "the other one is"


def test_a_whisper_in_the_cache_serves_by_its_name_without_a_network(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings({"home": str(tmp_path / "home"), "whisper": NAME})
    with only_this_machine(monkeypatch):
        (place,) = find_places(settings)
        assert (place.name, place.folder) == ("whisper-thin", repository / "snapshots" / OLD)
        opened = WhisperTranscriber.open(place, settings)
        opened.close()
        (pinned,) = find_places(settings.replaced(whisper=f"{NAME}@{NEW}"))
        assert pinned.folder == repository / "snapshots" / NEW
        model = find_model(NAME, home=tmp_path / "home")
        assert (model.name, model.origin) == ("whisper-thin", Origin(NAME, OLD))


def test_what_was_pulled_goes_before_what_others_cached(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "checkpoints" / f"school--whisper-thin@{NEW[:12]}"
    assert hub.find(NAME, folder.parent) == hub.Pulled(repository / "snapshots" / OLD, Origin(NAME, OLD))
    shutil.copytree(repository / "snapshots" / NEW, folder)
    files = [{"path": "config.json", "size": (folder / "config.json").stat().st_size}]
    (folder / hub.MARKER).write_text(json.dumps({"name": NAME, "revision": NEW, "asked": ["main"], "files": files}))
    assert hub.find(NAME, folder.parent) == hub.Pulled(folder, Origin(NAME, NEW))
    for senseless in ("../x", "a/b/c", ""):
        assert hub.find(senseless, folder.parent) is None
    assert hub.find(NAME, folder.parent, "a\nb") is None


def test_where_nothing_has_it_all_places_are_named_and_what_to_do(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings({"home": str(tmp_path / "home"), "whisper": NAME})
    with only_this_machine(monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        (place,) = find_places(settings)
        with pytest.raises(DownloadError) as caught:
            WhisperTranscriber.open(place, settings)
        with pytest.raises(DownloadError, match=f"{cache}.*nor is there a folder {NAME} here"):
            find_model(NAME, home=tmp_path / "home")
    error: AulaError = caught.value
    assert f"{NAME} is not in {tmp_path / 'home' / 'checkpoints'}" in error.what
    assert f"{cache / 'models--school--whisper-thin'} is not there" in error.what
    assert "http://127.0.0.1:9 could not be reached" in error.what
    assert f"aula build {tmp_path / 'home' / 'checkpoints' / 'school--whisper-thin'}" in error.next_step
