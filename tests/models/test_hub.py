"""Checkpoints from a hub: what is fetched, what is kept after a break, and what is said when it does not work."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aula.core.errors import (
    AulaError,
    CheckpointError,
    DownloadError,
    ModelNotFoundError,
    SettingsError,
    StorageError,
)
from aula.engine.recipe import Origin
from aula.models.hub import MARKER, Pulled, find_pulled, origin_of, pull
from tests.models.fake_hub import FILES, MODEL, SHA, WEIGHTS, FakeHub, Reply, only_this_machine, serve

NEEDED = {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with only_this_machine(monkeypatch), serve(FakeHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def _visible(folder: Path) -> list[str]:
    """Checkpoints that look whole."""
    return [path.name for path in folder.glob("*") if not path.name.startswith(".")]


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_pull_takes_what_recipes_read_at_a_pinned_commit(hub: FakeHub, folder: Path) -> None:
    pulled = pull(MODEL, folder)
    assert pulled == Pulled(folder / f"school--encoder@{SHA[:12]}", Origin(MODEL, SHA))
    assert _contents(pulled.folder) == {path: FILES[path] for path in NEEDED}
    assert sorted(hub.paths()) == sorted(NEEDED)
    assert all(f"/resolve/{SHA}/" in asked.path for asked in hub.asked[1:])
    assert origin_of(pulled.folder) == pulled.origin


def test_a_fresh_process_pulls_too(hub: FakeHub, folder: Path) -> None:
    """In this one somebody else may have imported the parts of the client that are loaded late."""
    program = (
        "import sys, pathlib, aula.models.hub as hub; print(hub.pull(sys.argv[1], pathlib.Path(sys.argv[2])).folder)"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, MODEL, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stderr, ended.stdout.strip()) == ("", str(folder / f"school--encoder@{SHA[:12]}"))


def test_what_is_there_is_not_fetched_again(hub: FakeHub, folder: Path) -> None:
    first = pull(MODEL, folder)
    hub.asked.clear()
    assert pull(MODEL, folder, "v1") == first
    assert hub.paths() == []
    hub.asked.clear()
    assert pull(MODEL, folder, SHA) == first
    assert hub.asked == []


def test_a_pulled_checkpoint_is_found_without_a_hub(hub: FakeHub, folder: Path) -> None:
    assert find_pulled(MODEL, folder) is None
    first = pull(MODEL, folder)
    for revision in (None, "main", SHA, SHA[:7]):
        assert find_pulled(MODEL, folder, revision) == first
    for revision in ("v1", SHA[:6], "b" * 40):
        assert find_pulled(MODEL, folder, revision) is None
    pull(MODEL, folder, "v1")
    assert find_pulled(MODEL, folder, "v1") == first
    for name in ("encoder", "school/other", "../encoder", "school/*", ""):
        assert find_pulled(name, folder) is None


def test_of_several_commits_the_one_pulled_last_is_found(hub: FakeHub, folder: Path) -> None:
    old = pull(MODEL, folder)
    hub.sha = "b" * 40
    new = pull(MODEL, folder)
    os.utime(old.folder / MARKER, ns=(0, 0))
    assert find_pulled(MODEL, folder) == new
    assert find_pulled(MODEL, folder, SHA) == old
    os.utime(new.folder / MARKER, ns=(-1, -1))
    assert find_pulled(MODEL, folder) == old


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub, folder: Path) -> None:
    hub.cuts["model.safetensors"] = [300_000, 300_000]
    pulled = pull(MODEL, folder)
    assert (pulled.folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked.headers.get("range") for asked in hub.asked if asked.path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_a_pull_that_ended_early_goes_on_in_the_next(hub: FakeHub, folder: Path) -> None:
    hub.cuts["model.safetensors"] = [400_000, 0]
    with pytest.raises(DownloadError, match=r"broke off in model\.safetensors after 400,000 of 1,024,000") as caught:
        pull(MODEL, folder)
    assert "goes on where it stopped" in caught.value.next_step
    assert _visible(folder) == []
    assert find_pulled(MODEL, folder) is None
    hub.asked.clear()
    assert _contents(pull(MODEL, folder).folder)["model.safetensors"] == WEIGHTS
    last = hub.asked[-1]
    assert last.headers["range"] == "bytes=400000-"
    assert "config.json" not in hub.paths()


def test_an_interrupt_leaves_nothing_that_looks_whole(hub: FakeHub, folder: Path) -> None:
    def interrupt(what: str, share: float) -> None:
        if what.endswith("model.safetensors") and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(MODEL, folder, progress=interrupt)
    assert _visible(folder) == []
    hub.asked.clear()
    assert _contents(pull(MODEL, folder).folder)["model.safetensors"] == WEIGHTS
    assert int(hub.asked[-1].headers["range"].removeprefix("bytes=").removesuffix("-")) > 400_000


@pytest.mark.parametrize("left", [b"x" * 1000, WEIGHTS + b"more", b"x" * len(WEIGHTS)])
@pytest.mark.parametrize("tells_blobs", [True, False])
def test_a_damaged_rest_of_an_earlier_pull_is_thrown_away(
    hub: FakeHub, folder: Path, left: bytes, tells_blobs: bool
) -> None:
    hub.tells_blobs = tells_blobs
    partial = folder / f".partial-school--encoder@{SHA[:12]}" / "model.safetensors.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    assert _contents(pull(MODEL, folder).folder)["model.safetensors"] == WEIGHTS


def test_a_hub_without_ranges_is_asked_for_everything_again(hub: FakeHub, folder: Path) -> None:
    hub.serves_ranges = False
    hub.cuts["model.safetensors"] = [400_000]
    assert _contents(pull(MODEL, folder).folder)["model.safetensors"] == WEIGHTS


def test_the_wrong_range_is_no_answer(hub: FakeHub, folder: Path) -> None:
    hub.cuts["model.safetensors"] = [400_000]
    wrong = Reply(206, b"x", {"Content-Range": "bytes 7-7/9"})
    hub.reply = lambda path: wrong if "model.safetensors" in hub.paths()[:-1] else None
    with pytest.raises(DownloadError, match=r"bytes from 7 of model\.safetensors"):
        pull(MODEL, folder)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("tells_blobs", [True, False])
def test_other_bytes_than_promised_are_refused(hub: FakeHub, folder: Path, path: str, tells_blobs: bool) -> None:
    hub.tells_blobs = tells_blobs
    hub.tampered = {path}
    with pytest.raises(DownloadError, match=f"{path} of {MODEL} came with other bytes"):
        pull(MODEL, folder)
    assert _visible(folder) == []
    hub.tampered = set()
    assert _contents(pull(MODEL, folder).folder)[path] == FILES[path]


def test_more_bytes_than_promised_are_refused(hub: FakeHub, folder: Path) -> None:
    hub.reply = lambda path: Reply(200, WEIGHTS + b"more") if path.endswith("/model.safetensors") else None
    with pytest.raises(DownloadError, match=r"more bytes of model\.safetensors"):
        pull(MODEL, folder)


def test_large_files_may_lie_elsewhere_and_the_token_does_not_go_there(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tells_blobs = False
    with serve(FakeHub()) as elsewhere:
        hub.large_files_at = elsewhere.endpoint
        assert _contents(pull(MODEL, folder).folder)["model.safetensors"] == WEIGHTS
    assert {asked.headers.get("authorization") for asked in hub.asked} == {"Bearer hf_secret"}
    assert [asked.headers.get("authorization") for asked in elsewhere.asked] == [None]
    assert str(next(folder.rglob(MARKER)).read_bytes()).count("hf_secret") == 0


def test_nothing_is_told_to_anybody(hub: FakeHub, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pull(MODEL, folder)
    with pytest.raises(ModelNotFoundError):
        pull("school/unknown", folder)
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert all(asked.headers["user-agent"].startswith("aula/") for asked in hub.asked)
    assert not any(
        "torch" in asked.headers["user-agent"] or "agent/" in asked.headers["user-agent"] for asked in hub.asked
    )
    assert {asked.path.split("/")[1] for asked in hub.asked} == {"api", "school"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tells_blobs", [True, False])
def test_progress_rises_to_one(hub: FakeHub, folder: Path, tells_blobs: bool) -> None:
    hub.tells_blobs = tells_blobs
    told: list[tuple[str, float]] = []
    pull(MODEL, folder, progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert f"{MODEL}: model.safetensors" in {what for what, _ in told}


def test_one_process_waits_for_another(hub: FakeHub, folder: Path) -> None:
    from filelock import FileLock

    folder.mkdir()
    lock = FileLock(folder / f".school--encoder@{SHA[:12]}.lock")
    lock.acquire()
    waited: list[str] = []

    def release(what: str, share: float) -> None:
        if "waiting" in what:
            waited.append(what)
            lock.release()

    pull(MODEL, folder, progress=release)
    assert len(waited) == 1


@pytest.mark.parametrize("damage", ["missing", "shorter", "marker"])
def test_a_damaged_checkpoint_is_not_found_and_is_mended(hub: FakeHub, folder: Path, damage: str) -> None:
    whole = pull(MODEL, folder)
    weights = whole.folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "shorter":
        weights.write_bytes(WEIGHTS[:-1])
    else:
        (whole.folder / MARKER).write_bytes(b"{}")
    assert find_pulled(MODEL, folder) is None
    assert origin_of(whole.folder) is None
    hub.asked.clear()
    assert pull(MODEL, folder) == whole
    assert weights.read_bytes() == WEIGHTS
    assert hub.paths() == ([] if damage == "marker" else ["model.safetensors"])


@given(
    st.binary(max_size=80)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_whatever_a_marker_holds_it_is_whole_or_not(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "a@b"
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_bytes(content)
    assert origin_of(folder) is None


def test_a_marker_of_another_commit_is_not_believed(hub: FakeHub, folder: Path) -> None:
    whole = pull(MODEL, folder)
    marker = whole.folder / MARKER
    marker.write_bytes(marker.read_bytes().replace(SHA.encode(), SHA[:12].encode() + b"0" * 28))
    assert pull(MODEL, folder) == whole
    assert origin_of(whole.folder) == Origin(MODEL, SHA)


NO_NAMES = """
../x a/b/c /etc/passwd a\\b C:\\x / a/ /b a/.. .. a--b/c .a/b é/b a/b@main a/b?x=1 a/b#c https://huggingface.co/a/b
"""


@pytest.mark.parametrize("name", [*NO_NAMES.split(), "", "a b", "a/b\n", "a/" + "b" * 300])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(hub: FakeHub, folder: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        pull(name, folder)
    assert "openai/whisper-small" in caught.value.next_step
    assert hub.asked == []
    assert not folder.exists()


@pytest.mark.parametrize("revision", ["", "../main", "a b", "a\\b", "a\n", "x" * 300])
def test_a_revision_that_is_none_is_refused_before_anything_is_asked(hub: FakeHub, folder: Path, revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is no revision"):
        pull(MODEL, folder, revision)
    assert hub.asked == []


def test_a_pull_request_is_a_revision(hub: FakeHub, folder: Path) -> None:
    assert pull(MODEL, folder, "refs/pr/2").origin.revision == SHA


def test_files_whose_names_climb_are_not_fetched(hub: FakeHub, folder: Path) -> None:
    hub.files |= dict.fromkeys(
        ["../config.json", "1_Pooling/../../config.json", "1_x/..\\config.json", "/config.json", "1_\n/config.json"],
        b"{}",
    )
    pull(MODEL, folder)
    assert set(hub.paths()) == NEEDED


def test_shards_are_taken_with_their_index_and_variants_are_not(hub: FakeHub, folder: Path) -> None:
    del hub.files["model.safetensors"]
    shards = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    hub.files |= dict.fromkeys(shards, b"{}")
    pull(MODEL, folder)
    assert set(hub.paths()) == NEEDED - {"model.safetensors"} | set(shards)


@pytest.mark.parametrize("part", ["", "2_Dense/"])
def test_pickles_are_refused_with_a_way_out(hub: FakeHub, folder: Path, part: str) -> None:
    hub.files = {path: content for path, content in FILES.items() if part or "safetensors" not in path}
    hub.files |= {f"{part}config.json": b"{}", f"{part}pytorch_model.bin": b"pickle"}
    with pytest.raises(CheckpointError, match="weights as pickles only") as caught:
        pull(MODEL, folder)
    assert f"{part}pytorch_model.bin" in caught.value.what
    assert "refs/pr/" in caught.value.next_step
    assert "save_pretrained" in caught.value.next_step
    assert hub.paths() == []


@pytest.mark.parametrize("lost", ["config.json", "safetensors"])
def test_a_repository_of_something_else_is_refused(hub: FakeHub, folder: Path, lost: str) -> None:
    hub.files = {path: content for path, content in FILES.items() if lost not in path and ".bin" not in path}
    with pytest.raises(CheckpointError) as caught:
        pull(MODEL, folder)
    assert "README.md" in caught.value.available


GATED = {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize(
    ("reply", "kind", "what", "next_step"),
    [
        (Reply(401, b"", {"X-Error-Code": "RepoNotFound"}), ModelNotFoundError, "shows no model", "HF_TOKEN"),
        (Reply(404, b"<html>"), ModelNotFoundError, "shows no model", "HF_TOKEN"),
        (Reply(404, b"", {"X-Error-Code": "RevisionNotFound"}), ModelNotFoundError, "no revision", "--revision"),
        (Reply(401, b"", GATED), DownloadError, "is gated", "accept them at https://huggingface.co/school/encoder"),
        (Reply(403, b"", GATED), DownloadError, "is gated", "HF_TOKEN"),
        (Reply(401, b'{"error": "Invalid credentials"}'), DownloadError, "HTTP 401", "hf auth login"),
        (Reply(403), DownloadError, "HTTP 403", "hf auth login"),
        (Reply(429, b"", {"Retry-After": "77"}), DownloadError, "HTTP 429", "wait 77 seconds"),
        (Reply(429, b"", {"Retry-After": "Wed, 21 Oct"}), DownloadError, "HTTP 429", "wait some minutes"),
        (Reply(400), DownloadError, "HTTP 400", "later"),
        (Reply(500), DownloadError, "HTTP 500", "later"),
        (Reply(503, b"\xff" * 9000), DownloadError, "does not answer as a hub", "HF_ENDPOINT"),
        (Reply(302, b"", {"Location": "/elsewhere"}), DownloadError, "could not be reached", "connect"),
        (Reply(302, b"", {"Location": "file:///etc/passwd"}), DownloadError, "could not be reached", "connect"),
    ],
)
@pytest.mark.parametrize("at", ["api", "resolve"])
def test_each_refusal_has_its_type_and_its_next_step(
    hub: FakeHub, folder: Path, reply: Reply, kind: type[AulaError], what: str, next_step: str, at: str
) -> None:
    hub.reply = lambda path: reply if f"/{at}/" in path or path == "/elsewhere" else None
    with pytest.raises(kind) as caught:
        pull(MODEL, folder, "main")
    if reply.status != 302 or at == "api":
        assert what in caught.value.what
        assert next_step in caught.value.next_step
    assert _visible(folder) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Please log in to this network</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"id": "x", "sha": null, "siblings": []}',
        b'{"id": "x", "sha": "../../../../x", "siblings": []}',
        b'{"id": "x", "siblings": null}',
        b'{"id": "x", "siblings": [7]}',
        b'{"id": "x", "siblings": [{"rfilename": 7, "lfs": 7}]}',
        b'{"id": "x", "siblings": [{"lfs": {}}]}',
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_no_hubs_is_a_typed_error(hub: FakeHub, folder: Path, body: bytes) -> None:
    hub.reply = lambda path: Reply(200, body) if "/api/" in path else None
    with pytest.raises(DownloadError, match="does not answer as a hub does") as caught:
        pull(MODEL, folder)
    assert "HF_ENDPOINT" in caught.value.next_step


leaves = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([SHA, "config.json", "a" * 64])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
sibling = st.fixed_dictionaries({}, optional=dict.fromkeys(["rfilename", "size", "blobId", "lfs"], values))
about = st.fixed_dictionaries(
    {"id": leaves, "sha": st.just(SHA) | values},
    optional={"siblings": st.lists(sibling, max_size=3) | values, "tags": values},
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(about)
def test_whatever_a_hub_answers_is_a_typed_error(hub: FakeHub, folder: Path, body: object) -> None:
    hub.reply = lambda path: Reply(200, json.dumps(body).encode()) if "/api/" in path else None
    with pytest.raises((DownloadError, CheckpointError)):
        pull(MODEL, folder)


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_an_empty_file_is_a_file(hub: FakeHub, folder: Path, tells_sizes: bool) -> None:
    hub.files |= {"vocab.txt": b""}
    hub.tells_sizes = tells_sizes
    assert _contents(pull(MODEL, folder).folder)["vocab.txt"] == b""


def test_a_file_that_is_listed_but_absent_is_the_hubs_fault(hub: FakeHub, folder: Path) -> None:
    missing = Reply(404, b"", {"X-Error-Code": "EntryNotFound"})
    hub.reply = lambda path: missing if path.endswith("tokenizer.json") else None
    with pytest.raises(DownloadError, match=r"tokenizer\.json"):
        pull(MODEL, folder)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_without_a_network_the_way_by_hand_is_told(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}/")
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        pull(MODEL, folder)
    by_hand = folder / "school--encoder"
    for told in ("config.json", "model.safetensors", "tokenizer.json", str(by_hand), f"aula build {by_hand}"):
        assert told in caught.value.next_step
    assert "HF_ENDPOINT=https://hf-mirror.com" in caught.value.next_step
    assert not folder.exists()


def test_without_a_network_an_earlier_pull_is_pointed_at(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    pulled = pull(MODEL, folder)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(DownloadError) as caught:
        pull(MODEL, folder)
    assert caught.value.next_step.endswith(f"aula build {pulled.folder}")
    assert pull(MODEL, folder, SHA) == pulled


def test_offline_mode_is_no_network(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode"):
        pull(MODEL, folder)
    assert hub.asked == []


def test_a_proxy_that_cannot_be_used_is_named(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        pull(MODEL, folder)
    assert "ALL_PROXY" in caught.value.next_step or "could not be reached" in caught.value.what


@pytest.mark.parametrize(
    "address", ["hf-mirror.com", "ftp://x", "http://", "http://a b", "http://x:99999", "http://x:y"]
)
def test_an_address_that_is_none_is_a_setting_to_correct(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(SettingsError, match="HF_ENDPOINT"):
        pull(MODEL, folder)


def test_too_little_space_is_said_before_anything_is_fetched(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(StorageError, match="needs 1 MB more"):
        pull(MODEL, folder)
    assert hub.paths() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_a_typed_error(hub: FakeHub, folder: Path) -> None:
    partial = folder / f".partial-school--encoder@{SHA[:12]}" / "model.safetensors.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        pull(MODEL, folder)
    assert _visible(folder) == []


def test_a_folder_that_cannot_be_made_is_a_typed_error(hub: FakeHub, folder: Path) -> None:
    folder.write_bytes(b"")
    with pytest.raises(StorageError, match="checkpoints"):
        pull(MODEL, folder)
