import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import SessionOptions, available_backends, open_session
from aula.core.errors import CalibrationError, CheckpointError, InputError
from aula.engine.build import BuildOptions, build
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models.checkpoints import Checkpoint
from aula.models.efficientnet import Reference, efficientnet_recipe, write_graph
from aula.models.efficientnet_examples import calibration, read_pictures, task
from aula.models.efficientnet_images import ImagePreparation
from aula.models.efficientnet_layout import EfficientNetConfig
from tests.models.make_efficientnet_reference import REFERENCE, SIZES, seeded_images, seeded_picture, seeded_weights


@pytest.fixture(scope="module")
def stored() -> dict[str, NDArray[Any]]:
    """What timm and transformers computed: see tests/models/make_efficientnet_reference.py."""
    return dict(np.load(REFERENCE, allow_pickle=False))


def _relative_error(produced: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(produced - wanted).max() / np.abs(wanted).max())


def _write(folder: Path, config: Any, file: str = "config.json") -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(config))
    return Checkpoint(folder)


def _small(stored: dict[str, NDArray[Any]], folder: Path, **changes: Any) -> Checkpoint:
    """A whole checkpoint of the smallest network stored, in transformers' layout."""
    from safetensors.numpy import save_file

    config = json.loads(str(stored["transformers-small.config"]))
    checkpoint = _write(folder, config)
    weights = seeded_weights(EfficientNetConfig.from_checkpoint(checkpoint).network().weight_shapes())
    save_file(weights, checkpoint.weights_file)
    return _write(folder, {**config, **changes})


@pytest.mark.parametrize("case", sorted(SIZES))
def test_logits_equal_those_of_timm_and_transformers(
    stored: dict[str, NDArray[Any]], tmp_path: Path, case: str
) -> None:
    checkpoint = _write(tmp_path, json.loads(str(stored[f"{case}.config"])))
    network = EfficientNetConfig.from_checkpoint(checkpoint).network()
    assert (network.height, network.width) == SIZES[case]
    weights = seeded_weights(network.weight_shapes())
    inputs = {"pixel_values": seeded_images(*SIZES[case])}

    reference = Reference(network, lambda: weights)(inputs)["logits"]
    assert _relative_error(reference, stored[f"{case}.logits"]) < 1e-5

    model = tmp_path / "model.onnx"
    model.write_bytes(write_graph(network, weights).SerializeToString())
    for backend in available_backends():
        with open_session(backend, model, SessionOptions(threads=1)) as session:
            assert _relative_error(session.run(inputs)["logits"], reference) < 1e-5, backend


def test_the_builder_proves_the_recipe_on_every_backend(stored: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    recipe = efficientnet_recipe(_small(stored, tmp_path / "model"), "small")
    bundle = build(Model.of(recipe), Store(tmp_path / "store"), BuildOptions(threads=1))
    candidates = bundle.engine().candidates
    errors = [candidate.relative_error for candidate in candidates]
    assert all(error is not None and error < 1e-5 for error in errors), candidates

    images = seeded_images(61, 75)
    with bundle.open() as session:
        together = session.run({"pixel_values": images})["logits"]
        alone = [session.run({"pixel_values": image[None]})["logits"][0] for image in images]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_every_node_is_named_after_its_layer(stored: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    graph = efficientnet_recipe(_small(stored, tmp_path), "small").write_graph().graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {"stem", "blocks.0.depthwise", "blocks.1.expand", "blocks.1.excite/Mul", "head", "classifier"} <= set(names)
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)


TRANSFORMERS = {
    "model_type": "efficientnet",
    "image_size": 64,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "batch_norm_eps": 1e-3,
    "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
}
TINY = {**TRANSFORMERS, "image_size": 32, "id2label": {str(number): f"class {number}" for number in range(4)}}
TIMM = {"architecture": "efficientnet_b0", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 64, 64]}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "resnet"}, "resnet"),
        ({**TRANSFORMERS, "hidden_act": "relu"}, "relu"),
        ({**TRANSFORMERS, "kernel_sizes": [3] * 7}, "kernel_sizes"),
        ({**TRANSFORMERS, "pooling_type": "max"}, "pooling_type"),
        ({**TRANSFORMERS, "image_size": 8}, "height 8"),
        ({**TRANSFORMERS, "image_size": "large"}, "wrong kind"),
        ({**TRANSFORMERS, "width_coefficient": None}, "wrong kind"),
        ({**TRANSFORMERS, "depth_coefficient": float("nan")}, "depth_coefficient"),
        ({name: value for name, value in TRANSFORMERS.items() if name != "batch_norm_eps"}, "batch_norm_eps"),
        ({}, "architecture 'None'"),
        ({**TIMM, "architecture": "efficientnet_lite0"}, "efficientnet_lite0"),
        ({**TIMM, "architecture": "efficientnet_b0_gn"}, "efficientnet_b0_gn"),
        ({**TIMM, "model_args": {"act_layer": "relu"}}, "act_layer"),
        ({**TIMM, "global_pool": "max"}, "global_pool"),
        ({**TIMM, "pretrained_cfg": {"input_size": [1, 64, 64]}}, "1 channels"),
        ({**TIMM, "pretrained_cfg": {}}, "input_size"),
        ({**TIMM, "num_classes": 0}, "classes 0"),
    ],
)
def test_other_architectures_and_damaged_configurations_are_named(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        efficientnet_recipe(_write(tmp_path, config), "small")


def test_damaged_weights_are_named(stored: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    labels = {str(index): "one more" for index in range(11)}
    with pytest.raises(CheckpointError, match=r"config\.json implies \[11, 320\]"):
        efficientnet_recipe(_small(stored, tmp_path, id2label=labels), "small").write_graph()
    checkpoint = _small(stored, tmp_path)
    weights = load_file(checkpoint.weights_file)
    weights["efficientnet.encoder.top_bn.running_var"][3] = np.nan
    save_file(weights, checkpoint.weights_file)
    with pytest.raises(CheckpointError, match=r"top_bn\.running_var"):
        efficientnet_recipe(checkpoint, "small").write_graph()
    del weights["classifier.bias"]
    save_file(weights, checkpoint.weights_file)
    with pytest.raises(CheckpointError, match=r"has no tensor classifier\.bias"):
        efficientnet_recipe(checkpoint, "small").write_graph()


def test_two_classes_are_transformers_unwritten_default(tmp_path: Path) -> None:
    assert EfficientNetConfig.from_checkpoint(_write(tmp_path, TRANSFORMERS)).classes == 2


def test_pictures_are_prepared_as_timm_does(stored: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    config = json.loads(str(stored["timm.config"]))
    config["pretrained_cfg"]["input_size"] = list(stored["timm.picture"].shape)
    prepare = ImagePreparation.from_checkpoint(_write(tmp_path, config))
    np.testing.assert_allclose(prepare(seeded_picture()), stored["timm.picture"], atol=1e-5)
    # Pillow rounds between its two passes, so a picture on its side differs by a grey level here and there.
    turned = prepare(np.ascontiguousarray(seeded_picture().transpose(1, 0, 2))).transpose(0, 2, 1)
    assert np.abs(turned - stored["timm.picture"]).mean() < 0.01


def test_pictures_are_prepared_as_transformers_does(stored: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    settings = json.loads(str(stored["transformers.preprocessor"]))
    _write(tmp_path, TRANSFORMERS)
    prepare = ImagePreparation.from_checkpoint(_write(tmp_path, settings, "preprocessor_config.json"))
    np.testing.assert_allclose(prepare(seeded_picture()), stored["transformers.picture"], atol=1e-5)

    _write(
        tmp_path,
        {**settings, "do_center_crop": True, "crop_size": {"height": 11, "width": 8}},
        file := "preprocessor_config.json",
    )
    cropped = ImagePreparation.from_checkpoint(Checkpoint(tmp_path))(seeded_picture())
    np.testing.assert_allclose(cropped, stored["transformers.picture"][:, 6:17, 8:16], atol=1e-5)

    for field, value in (("rescale_offset", True), ("image_mean", [0.5]), ("do_resize", False), ("size", {})):
        _write(tmp_path, {**settings, field: value}, file)
        with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
            ImagePreparation.from_checkpoint(Checkpoint(tmp_path))


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
        np.zeros((2, 16385, 3), np.uint8),
    ],
    ids=lambda picture: f"{picture.dtype}{list(picture.shape)}",
)
def test_what_is_no_picture_is_refused(picture: NDArray[Any]) -> None:
    half = (0.5, 0.5, 0.5)
    prepare = ImagePreparation((24, 24), True, (24, 24), 3, half, half)
    with pytest.raises(InputError, match="picture"):
        prepare(picture)


class Parrot:
    """A session whose logits stand in the first row of each picture."""

    def run(self, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"logits": tensors["pixel_values"][:, 0, 0, :4]}


def test_pictures_calibrate_and_judge(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, TINY)
    pixels = np.zeros((601, 3, 32, 32), np.float32)
    labels = np.arange(601) % 4
    pixels[np.arange(600), 0, 0, labels[:600]] = 1  # the last picture says class 0, which it is
    pixels[:3, 0, 0, :4] = [0, 0, 0, 2]
    np.savez(tmp_path / "pictures.npz", pixel_values=pixels, labels=labels)
    pictures = read_pictures(tmp_path / "pictures.npz", checkpoint)
    judged = task(pictures)
    assert judged.examples == 601
    assert judged.chance == pytest.approx(151 / 601)
    session: Any = Parrot()
    assert judged.evaluate(session) == pytest.approx(598 / 601)

    chosen = calibration(pictures)
    assert len(chosen.inputs) == 300
    np.testing.assert_array_equal(chosen.inputs[1]["pixel_values"], pixels[2:3])
    assert chosen.digest != judged.digest


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"labels": np.zeros(2, np.int64)}, "no array pixel_values"),
        ({"pixel_values": np.zeros((2, 3, 4, 4))}, "float64"),
        ({"pixel_values": np.zeros((0, 3, 4, 4), np.float32)}, r"\[0, 3, 4, 4\]"),
        ({"pixel_values": np.zeros((2, 3, 4, 4), np.float32), "labels": np.zeros(3, np.int64)}, r"int64\[3\]"),
        ({"pixel_values": np.zeros((2, 3, 4, 4), np.float32), "labels": np.zeros(2)}, "float64"),
        ({"pixel_values": np.zeros((2, 3, 32, 32), np.float32)}, "no array labels"),
        ({"pixel_values": np.zeros((2, 3, 32, 16), np.float32)}, r"are \[3, 32, 16\], but .* takes \[3, 32, 32\]"),
        ({"pixel_values": np.zeros((2, 1, 32, 32), np.float32)}, r"are \[1, 32, 32\]"),
        ({"pixel_values": np.zeros((2, 3, 32, 32), np.float32), "labels": np.array([0, 4])}, "the label 4, .* 0 to 3"),
        ({"pixel_values": np.zeros((2, 3, 32, 32), np.float32), "labels": np.array([0, -1])}, "the label -1"),
        ({"pixel_values": np.zeros((99, 3, 32, 32), np.float32), "labels": np.arange(99) % 4}, "99 labelled examples"),
        ({"pixel_values": np.array([object()])}, "cannot be read"),
    ],
)
def test_pictures_of_another_form_are_named(tmp_path: Path, arrays: dict[str, NDArray[Any]], named: str) -> None:
    np.savez(tmp_path / "pictures.npz", allow_pickle=True, **arrays)
    with pytest.raises(CalibrationError, match=named):
        task(read_pictures(tmp_path / "pictures.npz", _write(tmp_path, TINY)))


def test_pictures_that_are_all_alike_calibrate_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", pixel_values=np.zeros((20, 3, 32, 32), np.float32))
    with pytest.raises(CalibrationError, match=r"20 examples in pictures\.npz are all zero"):
        calibration(read_pictures(tmp_path / "pictures.npz", _write(tmp_path, TINY)))


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 torn", b"text"):
        (tmp_path / "pictures.npz").write_bytes(content)
        with pytest.raises(CalibrationError, match="cannot be read as npz"):
            read_pictures(tmp_path / "pictures.npz", Checkpoint(tmp_path))
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match="cannot be read as npz"):
        read_pictures(tmp_path / "bare.npy", Checkpoint(tmp_path))


def _folder(checkpoint: Path, classes: dict[str, str], files: list[str]) -> Path:
    """Pictures in folders, and a checkpoint of those classes."""
    from PIL import Image

    checkpoint.mkdir()
    half = [0.5, 0.5, 0.5]
    prepared = {"size": {"height": 64, "width": 64}, "image_mean": half, "image_std": half}
    (checkpoint / "config.json").write_text(json.dumps({**TRANSFORMERS, "id2label": classes}))
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(prepared))
    folder = checkpoint / "pictures"
    for number, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (number, 0, 0)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        ({"0": "dog", "1": "cat"}, ("cat", "dog"), [1, 0]),
        ({"0": "dog", "1": "cat"}, ("0", "1"), [0, 1]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ("ape", "bee"), [0, 1]),
    ],
)
def test_a_folder_of_pictures_is_prepared_and_labelled(
    tmp_path: Path, classes: dict[str, str], names: tuple[str, str], labels: list[int]
) -> None:
    folder = _folder(tmp_path / "model", classes, [f"{names[0]}/a.png", f"{names[1]}/b.JPG", f"{names[1]}/note.png"])
    (folder / names[0] / "readme.txt").write_text("no picture")
    pictures = read_pictures(folder, Checkpoint(tmp_path / "model"))
    assert pictures.pixels.shape == (3, 3, 64, 64)
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [labels[0], labels[1], labels[1]]


def test_folders_that_hold_no_pictures_or_other_classes_are_named(tmp_path: Path) -> None:
    bare = _folder(tmp_path / "bare", {"0": "dog", "1": "cat"}, ["a.png", "b.png"])
    checkpoint = Checkpoint(tmp_path / "bare")
    assert read_pictures(bare, checkpoint).labels is None
    with pytest.raises(CalibrationError, match="no array labels"):
        task(read_pictures(bare, checkpoint))
    (bare / "c.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(CalibrationError, match=r"c\.png cannot be read as a picture"):
        read_pictures(bare, checkpoint)
    (tmp_path / "none").mkdir()
    with pytest.raises(CalibrationError, match="holds no pictures"):
        read_pictures(tmp_path / "none", checkpoint)
    other = _folder(tmp_path / "other", {"0": "dog", "1": "cat"}, ["owl/a.png", "dog/b.png"])
    with pytest.raises(CalibrationError, match="owl") as failure:
        read_pictures(other, Checkpoint(tmp_path / "other"))
    assert failure.value.available == ("dog", "cat")
