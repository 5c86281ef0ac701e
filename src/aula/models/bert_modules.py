"""What stands between a sentence encoder's hidden states and its vector: the modules that sentence-transformers lists.

Layout: Reimers & Gurevych 2019 (arXiv:1908.10084) and the library's own files: modules.json names the modules in
their order, each with a folder for its configuration.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.models.bert_config import BertConfig, load_weights
from aula.models.checkpoints import Checkpoint

LISTING = "modules.json"
POOLINGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
"""Ways to make one vector of many, and how older configurations end their names ("pooling_mode_cls_token"). Where
several are chosen their vectors stand side by side, in this order."""

UNWRITTEN = {"weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
ACTIVATIONS = {"Tanh": "tanh", "Identity": "identity"}


@dataclass(frozen=True, slots=True)
class Normalise:
    """Scales a vector to length one."""


@dataclass(frozen=True, slots=True)
class Dense:
    """One more linear layer on the vector; its weights lie in a file of their own."""

    checkpoint: Checkpoint
    inputs: int
    outputs: int
    bias: bool
    activation: str

    def weights(self) -> dict[str, Float32]:
        """`linear.weight` [outputs, inputs] and, if there is one, `linear.bias`. Raises CheckpointError."""
        bias = {"linear.bias": (self.outputs,)} if self.bias else {}
        return load_weights(self.checkpoint, {"linear.weight": (self.outputs, self.inputs), **bias})


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """`encoder` holds BERT and its tokenizer; then come pooling and steps. `files` say all this."""

    encoder: Checkpoint
    poolings: tuple[str, ...] = ("mean",)
    steps: tuple[Normalise | Dense, ...] = (Normalise(),)
    files: tuple[Path, ...] = ()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "SentenceModules":
        """As modules.json says; without it the mean of the tokens, scaled to length one.

        Raises CheckpointError for a module or a pooling that is not written here, naming it.
        """
        if not is_sentence_encoder(checkpoint):
            return cls(checkpoint)
        _refuse_default_prompt(checkpoint)
        modules = _listed(checkpoint.folder / LISTING)
        kinds = [kind for kind, _ in modules]
        if kinds[:2] != ["Transformer", "Pooling"]:
            raise CheckpointError(
                f"{LISTING} lists {', '.join(kinds) or 'nothing'}",
                available=["Transformer, Pooling, then any of Dense and Normalize"],
                next_step="choose a sentence encoder with modules in this order",
            )
        encoder, pooling = (Checkpoint(checkpoint.folder / path) for _, path in modules[:2])
        hidden = BertConfig.from_checkpoint(encoder).hidden_size
        poolings = _poolings(pooling.read_json("config.json"), hidden)
        width = hidden * len(poolings)
        steps: list[Normalise | Dense] = []
        files = [checkpoint.folder / LISTING, pooling.folder / "config.json"]
        for kind, path in modules[2:]:
            if kind == "Normalize":
                steps.append(Normalise())
            elif kind == "Dense":
                dense = _dense(Checkpoint(checkpoint.folder / path), width)
                width = dense.outputs
                steps.append(dense)
                files += [dense.checkpoint.folder / "config.json", *dense.checkpoint.weights_files]
            else:
                raise CheckpointError(
                    f"{LISTING} lists the module {kind}, which the BERT recipe does not write",
                    available=["Dense", "Normalize"],
                    next_step="choose a sentence encoder with these modules only",
                )
        return cls(encoder, poolings, tuple(steps), tuple(files))

    def dimensions(self, hidden_size: int) -> int:
        """Of the finished vector."""
        widths = [step.outputs for step in self.steps if isinstance(step, Dense)]
        return widths[-1] if widths else hidden_size * len(self.poolings)


def is_sentence_encoder(checkpoint: Checkpoint) -> bool:
    return (checkpoint.folder / LISTING).is_file()


def _refuse_default_prompt(checkpoint: Checkpoint) -> None:
    """Some encoders want words before every text; without them vectors would quietly be worse."""
    name = "config_sentence_transformers.json"
    settings = checkpoint.read_json(name) if (checkpoint.folder / name).is_file() else {}
    prompts, chosen = settings.get("prompts"), settings.get("default_prompt_name")
    prompt = prompts.get(chosen) if isinstance(prompts, dict) and chosen is not None else None
    if prompt:
        raise CheckpointError(
            f"the sentence encoder puts {prompt!r} before every text, which the BERT recipe does not do",
            next_step=f"write these words into the texts, and set default_prompt_name in {name} to null",
        )


def _listed(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of every module. The kind is a class's full name, which moves between releases: the last part
    stays."""
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a list of modules with type and path ({error})", next_step="copy the file again"
        ) from error
    for _, folder in listed:
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts or "\\" in folder:
            raise CheckpointError(
                f"{path.name} names the folder {folder!r}, which lies outside the checkpoint",
                next_step="copy the checkpoint again, from a source that you trust",
            )
    return listed


def _poolings(raw: Mapping[str, Any], hidden: int) -> tuple[str, ...]:
    """Newer configurations name the poolings, older ones have a switch for each."""
    width = raw.get("embedding_dimension", raw.get("word_embedding_dimension", hidden))
    if width != hidden:
        raise CheckpointError(
            f"the pooling expects hidden states of size {width}, but config.json says {hidden}",
            next_step="the folders belong to different models: copy the checkpoint again",
        )
    switches = {**POOLINGS, **UNWRITTEN}
    chosen = raw.get("pooling_mode", [name for name, key in switches.items() if raw.get(f"pooling_mode_{key}")])
    named = [chosen] if isinstance(chosen, str) else list(chosen) if isinstance(chosen, list | tuple) else [str(chosen)]
    for name in named:
        _expect("pooling", name, POOLINGS)
    return tuple(named) or ("mean",)


def _dense(checkpoint: Checkpoint, width: int) -> Dense:
    raw = checkpoint.read_json("config.json")
    inputs, outputs = raw.get("in_features"), raw.get("out_features")
    if inputs != width or type(outputs) is not int or outputs < 1:
        raise CheckpointError(
            f"{checkpoint.folder.name} turns {inputs!r} numbers into {outputs!r}, but is given {width}",
            next_step="the folders belong to different models: copy the checkpoint again",
        )
    # Later releases can also attach such a layer to every token.
    for end in ("input", "output"):
        _expect(f"dense {end}", raw.get(f"module_{end}_name") or "sentence_embedding", ["sentence_embedding"])
    activation = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    _expect("dense activation", activation, ACTIVATIONS)
    return Dense(checkpoint, width, outputs, bool(raw.get("bias", True)), ACTIVATIONS[activation])


def _expect(what: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise CheckpointError(
            f"the sentence encoder has the {what} {value!r}, which the BERT recipe does not write",
            available=list(known),
            next_step="choose a sentence encoder with one of these",
        )
