"""Bundles that are served as they are, from a store's files to arrays out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.gpus import Gpu
from aula.backends.onnx_file import tensor_specs
from aula.backends.session import StatePair
from aula.core.errors import InputError, SettingsError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, TensorSpec
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import sealed
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models import raw_bundles
from aula.models.raw_bundles import bundle_rungs
from aula.runtime import Runtime
from tests.engine.toy import WEIGHT, toy_model, toy_recipe


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def bundle(home: Path) -> Bundle:
    return build(toy_model(home), Store(home / "engines"), BuildOptions(("fp32",)))


def settings(home: Path, engines: str) -> Settings:
    return Settings({"home": str(home), "engines": engines})


async def test_a_bundle_is_served_as_it_is(home: Path, bundle: Bundle) -> None:
    async with Runtime(bundle_rungs(settings(home, "toy"))) as runtime:
        (info,) = runtime.engines()
        assert (info.name, info.version, info.platform, info.max_batch) == (
            "toy",
            bundle.manifest.key[-16:],
            bundle.engine().backend,
            4,
        )
        assert info.inputs == (TensorSpec("x", "float32", ("rows", 3)),)
        assert info.outputs == (TensorSpec("y", "float32", ("rows", 2)),)
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        made = await runtime.infer("toy", {"x": rows}, Context())
        np.testing.assert_allclose(made["y"], rows @ WEIGHT)
        assert runtime.engines() == (info,), "loading it tells nothing else"
        with pytest.raises(InputError, match="rows 1 to 4"):
            await runtime.infer("toy", {"x": np.ones((5, 3), np.float32)}, Context())


async def test_names_paths_and_folders(home: Path, bundle: Bundle) -> None:
    store, key = home / "engines", bundle.manifest.key
    for words, names in [
        (f"{key}", ["toy"]),
        (f"mine={key}, toy", ["mine", "toy"]),
        (f"mine={store / 'bundles' / key}.json", ["mine"]),
        (str(store), ["toy"]),
        ("", []),
    ]:
        assert [rung.info.name for rung in bundle_rungs(settings(home, words))] == names
    for words, told in [("absent", "absent"), ("toy, toy", "two engines"), (f"x={store}/bundles/no.json", "no")]:
        with pytest.raises(SettingsError, match=told):
            bundle_rungs(settings(home, words))


def test_parts_are_engines_of_their_own(home: Path) -> None:
    model = Model("pair", {"first": toy_recipe(home), "second": toy_recipe(home)})
    build(model, Store(home / "engines"), BuildOptions(("fp32",)))
    assert [rung.ladder for rung in bundle_rungs(settings(home, "pair"))] == ["infer.pair.first", "infer.pair.second"]


def test_engines_with_states_are_left_out(home: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    part = bundle.part()
    stateful = replace(bundle.engine(), states=(StatePair("x", "y"),))
    changed = replace(bundle.manifest, parts={"model": replace(part, engines={"cpu": stateful})})
    odd = Bundle(sealed(changed), bundle.files)
    monkeypatch.setattr(raw_bundles, "_named_bundles", lambda _: [("toy", odd)])
    assert bundle_rungs(settings(home, "toy")) == []


def test_a_gpu_that_the_bundle_was_built_for_comes_first_and_says_what_it_needs(
    home: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Gpu(1, "GPU-1", "NVIDIA L4", "8.9", "580.1", 24 * 2**30)
    monkeypatch.setattr(raw_bundles, "list_gpus", lambda: (replace(card, index=0, capability="9.0"), card))
    part = bundle.part()
    both = replace(bundle.manifest, parts={"": replace(part, engines={**part.engines, "sm89": bundle.engine()})})
    monkeypatch.setattr(raw_bundles, "_named_bundles", lambda _: [("toy", replace(bundle, manifest=sealed(both)))])
    monkeypatch.setattr(raw_bundles, "WHOLE", "")
    gpu, cpu = bundle_rungs(settings(home, "toy"))
    assert (gpu.info.name, gpu.device, gpu.ladder) == ("toy@gpu1", "gpu1", cpu.ladder)
    assert gpu.needs is not None
    assert gpu.needs() == sum(file.bytes for file in bundle.engine().files)
    assert (cpu.info.name, cpu.device, cpu.info.capability) == ("toy", "host", Capability.INFER)


def test_specs_of_a_file_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x0a\x3a\xff")
    assert tensor_specs(path) == ((), ())
    assert tensor_specs(tmp_path / "absent.onnx") == ((), ())


def test_specs_are_read_without_a_runtime(tmp_path: Path, home: Path, bundle: Bundle) -> None:
    import onnx

    graph: Any = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["a"], ["b"])],
        "g",
        [
            onnx.helper.make_tensor_value_info("a", onnx.TensorProto.INT32, [None, "n", 3]),
            onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1]),
        ],
        [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.BFLOAT16, [])],
        [onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])],
    )
    path = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph), str(path))
    assert tensor_specs(path) == ((TensorSpec("a", "int32", ("a_0", "n", 3)),), (TensorSpec("b", "", ()),))
