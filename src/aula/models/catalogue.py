"""Recipes by name, for `aula build`: what the packages here carry, and a user's own checkpoint folders."""

from dataclasses import dataclass
from pathlib import Path

from aula.core.errors import ModelNotFoundError
from aula.engine.recipe import Recipe
from aula.models import bert, sentences
from aula.models.checkpoints import Checkpoint

NAMES = ("minilm",)
"""Models that need no checkpoint folder."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a user gives for int8: sentences to calibrate on, and labelled ones to judge by; None for this
    project's own intent examples."""

    calibrate: Path | None = None
    labelled: Path | None = None


def find_recipe(model: str, evidence: Evidence | None = None) -> Recipe:
    """The recipe of `model`: a name of NAMES, or a folder with a sentence encoder of the BERT family.

    Raises ModelNotFoundError with what there is, CheckpointError for a folder that holds something else, and
    CalibrationError for evidence that cannot be read.
    """
    evidence = evidence or Evidence()
    if model == "minilm":
        checkpoint = bert.minilm_checkpoint()
    elif (Path(model) / "config.json").is_file():
        checkpoint = Checkpoint(Path(model))
    else:
        raise ModelNotFoundError(
            f"there is no model {model!r}, nor a folder of that name with a config.json",
            available=NAMES,
            next_step="name one of these, or a checkpoint folder in the Hugging Face layout",
        )
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
        model if model in NAMES else Path(model).resolve().name,
        calibration=lambda: sentences.calibration(texts, source, tokenizer),
        task=lambda: sentences.task(labelled, tokenizer, dimensions),
    )
