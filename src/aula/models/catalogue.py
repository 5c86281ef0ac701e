"""Recipes by name, for `aula build`: what the packages here carry, and a user's own checkpoint folders."""

from dataclasses import dataclass
from pathlib import Path

from aula.core.errors import ModelNotFoundError
from aula.engine.recipe import Recipe
from aula.models import bert, efficientnet, sentences
from aula.models import efficientnet_examples as pictures
from aula.models.checkpoints import Checkpoint

NAMES = ("minilm",)
"""Models that need no checkpoint folder."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a user gives for int8: real examples to calibrate on, and labelled ones to judge by. For a sentence
    encoder text files, where None means this project's own intent examples; for pictures npz files."""

    calibrate: Path | None = None
    labelled: Path | None = None


def find_recipe(model: str, evidence: Evidence | None = None) -> Recipe:
    """The recipe of `model`: a name of NAMES, or a folder with a sentence encoder of the BERT family or an
    EfficientNet.

    Raises ModelNotFoundError with what there is, CheckpointError for a folder that holds something else, and
    CalibrationError for evidence that cannot be read.
    """
    evidence = evidence or Evidence()
    if model == "minilm":
        return _sentence_encoder(bert.minilm_checkpoint(), model, evidence)
    checkpoint = Checkpoint(Path(model))
    if not (checkpoint.folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"there is no model {model!r}, nor a folder of that name with a config.json",
            available=NAMES,
            next_step="name one of these, or a checkpoint folder in the Hugging Face or timm layout",
        )
    name = checkpoint.folder.resolve().name
    raw = checkpoint.read_json("config.json")
    if raw.get("model_type") == "efficientnet" or "efficientnet" in str(raw.get("architecture")):
        return _image_classifier(checkpoint, name, evidence)
    return _sentence_encoder(checkpoint, name, evidence)


def _sentence_encoder(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Recipe:
    """Judged on labelled sentences; calibrated on these too unless others are given."""
    tokenizer = bert.open_tokenizer(checkpoint)
    labelled = sentences.read_labelled(evidence.labelled) if evidence.labelled else sentences.own_labelled()
    if evidence.calibrate is not None:
        texts, source = sentences.read_sentences(evidence.calibrate), evidence.calibrate.name
    else:
        texts = [sentence for _, sentence in labelled]
        source = evidence.labelled.name if evidence.labelled else "aula's intent examples"
    dimensions = bert.BertConfig.from_checkpoint(checkpoint).hidden_size
    return bert.sentence_recipe(
        checkpoint,
        name,
        calibration=lambda: sentences.calibration(texts, source, tokenizer),
        task=lambda: sentences.task(labelled, tokenizer, dimensions),
    )


def _image_classifier(checkpoint: Checkpoint, name: str, evidence: Evidence) -> Recipe:
    """Judged on labelled pictures; int8 needs both files, since aula has no pictures of its own."""
    calibrate, labelled = evidence.calibrate, evidence.labelled
    return efficientnet.efficientnet_recipe(
        checkpoint,
        name,
        calibration=None if calibrate is None else lambda: pictures.calibration(pictures.read_pictures(calibrate)),
        task=None if labelled is None else lambda: pictures.task(pictures.read_pictures(labelled)),
    )
