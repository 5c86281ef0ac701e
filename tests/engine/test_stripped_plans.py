"""Plans without weights in a bundle: each names the ONNX file that fills it, and equal files are stored once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from aula.core.errors import BundleError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import check_part
from aula.engine.onnx_files import external_files
from aula.engine.plans import PlanOptions
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models import bert
from tests.engine.fake_gpu import fake_workshop
from tests.models.bert_small_model import SMALL


def _built(folder: Path, *, stripped: bool) -> Bundle:
    checkpoint = bert.random_checkpoint(SMALL, folder / "checkpoint", 0)
    model = Model.of(bert.bert_recipe(checkpoint, "small", seeded=True))
    options = BuildOptions(target="sm90", plans=PlanOptions(stripped=stripped))
    return build(model, Store(folder / "store"), options, make_workshop=lambda _target: fake_workshop())


def test_every_profile_names_its_weights(tmp_path: Path) -> None:
    bundle = _built(tmp_path, stripped=True)
    engine = bundle.engine(target="sm90")
    assert engine.weights.keys() == engine.plans.keys() == engine.profiles.keys()
    suffixes = {file.digest: file.suffix for file in engine.files}
    assert {suffixes[digest] for digest in engine.weights.values()} == {".onnx"}
    path = bundle.options(profile="question", target="sm90").weights
    assert path is not None
    graph = onnx.load(str(path), load_external_data=False)
    stored = {file.name for file in engine.files}
    assert external_files(graph), "the weights themselves lie beside the graph"
    assert set(external_files(graph)) <= stored
    assert onnx.load(str(path)).graph.initializer, "and are found there"


def test_profiles_share_one_file_of_weights(tmp_path: Path) -> None:
    engine = _built(tmp_path, stripped=True).engine(target="sm90")
    beside = [file for file in engine.files if file.suffix == ".data"]
    assert len(beside) == 1


def test_a_plan_with_weights_names_none(tmp_path: Path) -> None:
    bundle = _built(tmp_path, stripped=False)
    assert bundle.engine(target="sm90").weights == {}
    assert bundle.options(profile="question", target="sm90").weights is None


def test_weights_that_are_not_among_the_files_are_not_trusted(tmp_path: Path) -> None:
    bundle = _built(tmp_path, stripped=True)
    part = bundle.part()
    engine = part.engines["sm90"]
    false = replace(engine, weights={"question": "0" * 64})
    with pytest.raises(BundleError, match="the weights of profile question"):
        check_part(replace(part, engines={"sm90": false}), "small")


def test_stripped_or_not_is_another_bundle(tmp_path: Path) -> None:
    assert _built(tmp_path, stripped=True).manifest.key != _built(tmp_path, stripped=False).manifest.key


def test_numbers_are_the_same(tmp_path: Path) -> None:
    errors = [
        _built(tmp_path / str(one), stripped=one).engine(target="sm90").chosen.relative_error for one in (False, True)
    ]
    np.testing.assert_equal(errors[0], errors[1])
