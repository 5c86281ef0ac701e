"""The trained weights as they leave the training: float16 safetensors in parts of at most 15 MB, config beside them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.recogniser.model import Config, Recogniser

PART_BYTES = 15_000_000


def save(folder: Path, config: Config, state: dict[str, Tensor], notes: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part: dict[str, Tensor] = {}
    number = used = 0
    for name, value in state.items():
        half = value.detach().to("cpu", torch.float32 if name in ("mean", "scale") else torch.float16).contiguous()
        if used + half.nbytes > PART_BYTES:
            save_file(part, folder / f"weights-{number}.safetensors")
            part, used, number = {}, 0, number + 1
        part[name] = half
        used += half.nbytes
    save_file(part, folder / f"weights-{number}.safetensors")
    (folder / "config.json").write_text(json.dumps({"model": config.to_dict(), **notes}, indent=1), "utf-8")


def load(folder: Path) -> Recogniser:
    """A model in float32 with the weights of a folder; it is an error if one is missing or left over."""
    fields = json.loads((folder / "config.json").read_text("utf-8"))["model"]
    model = Recogniser(Config(**{**fields, "said_after": tuple(fields["said_after"])}))
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("weights-*.safetensors")):
        state |= load_file(file)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model
