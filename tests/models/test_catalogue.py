"""What a name leads to."""

import json
from pathlib import Path

import pytest

from aula.core.errors import AulaError, CheckpointError, DownloadError, EngineError, ModelNotFoundError
from aula.engine.recipe import Size
from aula.models import bert_seeded, hub, whisper
from aula.models.catalogue import Evidence, find_model
from tests.models.bert_small_model import SMALL as SMALL_BERT
from tests.models.whisper_small_model import SMALL as SMALL_WHISPER


def test_folders_are_known_by_their_configuration(tmp_path: Path) -> None:
    bert_seeded.random_checkpoint(SMALL_BERT, tmp_path / "my-bert", 0)
    whisper.random_checkpoint(SMALL_WHISPER, tmp_path / "my-whisper", 0)
    found = find_model(str(tmp_path / "my-bert"))
    assert (found.name, list(found.parts), found.origin) == ("my-bert", ["model"], None)
    assert list(find_model(str(tmp_path / "my-whisper")).parts) == ["encoder", "decoder"]


def test_a_family_without_a_recipe_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(CheckpointError, match="'roberta'") as failure:
        find_model(str(tmp_path))
    assert "aula export" in failure.value.next_step


@pytest.mark.parametrize("name", ["no-such-model", "", "no/such/model", "../no-such", "no-such.onnx", "a\0b"])
def test_what_is_nowhere_is_said_to_be(name: str) -> None:
    with pytest.raises(AulaError):
        find_model(name)
    with pytest.raises(ModelNotFoundError) as failure:
        find_model("no-such-model")
    assert failure.value.available == ("minilm", "recogniser")


def test_a_pulled_checkpoint_bears_its_name_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found again without the network."""
    from aula.engine.recipe import Origin

    folder = tmp_path / "checkpoints" / "school--tiny@0123456789ab"
    bert_seeded.random_checkpoint(SMALL_BERT, folder, 0)
    origin = Origin("school/tiny", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.setattr(hub, "find_pulled", lambda *_: hub.Pulled(folder, origin))
    monkeypatch.setattr(hub, "origin_of", lambda _: origin)
    found = find_model("school/tiny", home=tmp_path)
    assert (found.name, found.origin) == ("tiny", origin)


def test_profiles_replace_the_recipes_own(tmp_path: Path) -> None:
    bert_seeded.random_checkpoint(SMALL_BERT, tmp_path / "model", 0)
    found = find_model(str(tmp_path / "model"), profiles=["short:batch=1,sequence=2-4-8"])
    assert [(one.name, dict(one.sizes)) for one in found.parts["model"].profiles] == [
        ("short", {"batch": Size(1, 1, 1), "sequence": Size(2, 4, 8)})
    ]
    whisper.random_checkpoint(SMALL_WHISPER, tmp_path / "speech", 0)
    speech = find_model(str(tmp_path / "speech"), profiles=["encoder/one:rows=1,frames=20"])
    assert [one.name for one in speech.parts["encoder"].profiles] == ["one"]
    assert len(speech.parts["decoder"].profiles) > 1
    with pytest.raises(EngineError, match="for which part") as failure:
        find_model(str(tmp_path / "speech"), profiles=["one:rows=1,frames=20"])
    assert failure.value.available == ("encoder", "decoder")


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    bert_seeded.random_checkpoint(SMALL_BERT, tmp_path / "model", 0)
    whisper.random_checkpoint(SMALL_WHISPER, tmp_path / "speech", 0)
    for name, parts in (("model", ("model",)), ("speech", ("encoder", "decoder"))):
        with pytest.raises(EngineError, match="'foo', which is no part") as failure:
            find_model(str(tmp_path / name), profiles=["foo/q:batch=1,sequence=4"])
        assert failure.value.available == parts
    named = find_model(str(tmp_path / "model"), profiles=["model/q:batch=1,sequence=4"])
    assert [one.name for one in named.parts["model"].profiles] == ["q"]


def test_profiles_end_where_the_positions_end(tmp_path: Path) -> None:
    bert_seeded.random_checkpoint(SMALL_BERT, tmp_path / "model", 0)
    whisper.random_checkpoint(SMALL_WHISPER, tmp_path / "speech", 0)
    longest = SMALL_BERT["max_position_embeddings"]
    assert find_model(str(tmp_path / "model"), profiles=[f"q:batch=1,sequence={longest}"])
    with pytest.raises(EngineError, match=f"goes to {longest}"):
        find_model(str(tmp_path / "model"), profiles=[f"q:batch=1,sequence={longest + 1}"])
    with pytest.raises(EngineError, match="frames up to 101"):
        find_model(str(tmp_path / "speech"), profiles=["encoder/q:rows=1,frames=101"])
    for sizes in ("tokens=81,slots=8,positions=8", "tokens=8,slots=81,positions=8", "tokens=8,slots=8,positions=51"):
        with pytest.raises(EngineError, match="goes to"):
            find_model(str(tmp_path / "speech"), profiles=[f"decoder/q:rows=1,answers=1,{sizes}"])


@pytest.mark.parametrize("kind", [DownloadError, ModelNotFoundError])
def test_a_name_that_may_be_a_folders_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[EngineError]
) -> None:
    def pull(*_: object) -> None:
        raise kind("the hub does not know it.", next_step="look there", available=["this"])

    monkeypatch.setattr(hub, "pull", pull)
    with pytest.raises(kind, match=r"know it; nor is there a folder models/tiny here") as failure:
        find_model("models/tiny", home=tmp_path)
    assert (failure.value.next_step, failure.value.available) == ("look there", ("this",))


def test_evidence_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        find_model("minilm", Evidence(labelled=tmp_path / "absent.tsv"))
