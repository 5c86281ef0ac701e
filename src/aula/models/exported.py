"""Any other Hugging Face folder as an ONNX file, by PyTorch's own exporter, which is an extra.

The export runs in a child process: PyTorch's memory goes back when it ends, and a hanging export is ended.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from aula.core.errors import BackendError, CheckpointError, ModelNotFoundError
from aula.engine.onnx_files import INLINE_LIMIT, load_model

INSTALL = 'pip install "aula[export]"'
NEEDED = ("torch", "transformers", "onnxscript")
MOST_SECONDS = 900.0
"""Large checkpoints take minutes; one that takes longer hangs."""

SAME = 1e-3
"""Largest difference over largest value between PyTorch and the exported graph in fp32."""

OPSET = 20
"""The first operator set with GELU, and what recipes write."""


def export_to_onnx(folder: Path, out: Path, *, seconds: float = MOST_SECONDS) -> Path:
    """Write the model in `folder` (config.json and safetensors) to `out`, with free batch and sequence, and return it.

    Texts: input_ids, attention_mask and what else the model takes of token_type_ids; pictures: pixel_values. The
    output is the first of the model's: logits of a model with a head, else hidden states. Code that came with the
    checkpoint is never run, and pickled weights are never read. The file is compared with the model before it is
    handed out. Raises BackendError without the extra or where
    PyTorch cannot export the model, ModelNotFoundError and CheckpointError for the folder, EngineError for a file
    that came out wrong.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"exporting needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            next_step=INSTALL,
        )
    config = _config(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "aula.models.exported", str(folder), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"exporting {folder.name} took more than {seconds:g} seconds and was ended",
            next_step="export it by hand with torch.onnx.export, then: aula build FILE.onnx",
        ) from error
    if done.returncode != 0:
        raise BackendError(
            f"PyTorch cannot export {folder.name} ({_architecture(config)}): {_reason(done)}",
            next_step="export it by hand with torch.onnx.export, then: aula build FILE.onnx",
        )
    load_model(out, weights=False)
    return out


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line that names an error: PyTorch writes advice after it."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.<' ]*(Error|Exception)\b.*: ", line)]
    return [f"exit code {done.returncode}", *lines[-1:], *named[-1:]][-1][:400]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no {path}", next_step="give a checkpoint folder in the Hugging Face layout"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})", next_step="copy the file again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise CheckpointError(f"{path} names no model_type", next_step="copy config.json from the model's page")
    if config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{folder} holds {_architecture(config)}, which writes token by token; one graph cannot hold that loop",
            next_step="export its encoder and decoder by hand, then: aula build FILE.onnx",
        )
    if not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no safetensors",
            available=sorted(entry.name for entry in folder.glob("*"))[:8],
            next_step="convert the weights with save_pretrained(FOLDER, safe_serialization=True)",
        )
    return config


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures") or [config.get("model_type")]
    return str(named[0])


def _export(folder: Path, out: Path) -> None:
    """What the child process does."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    kind: Any = getattr(transformers, str((config.architectures or [""])[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        kind = transformers.AutoModel
    options: dict[str, Any] = {"trust_remote_code": False} if kind is transformers.AutoModel else {}
    model = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **options).eval().float()
    inputs, free = _inputs(model, config, torch)

    class First(torch.nn.Module):  # type: ignore[misc]
        """Only the first output, so that every exported graph has one; inputs by place, since the exporter loses
        its own guards on those by keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            return self.model(**dict(zip(inputs, given, strict=True)), return_dict=False)[0]

    first = First()
    torch.onnx.export(
        first,
        args=tuple(inputs.values()),
        f=str(out),
        input_names=list(inputs),
        output_names=["logits" if "For" in kind.__name__ else "hidden"],
        dynamic_shapes={"given": tuple(free.values())},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        external_data=_weight_bytes(model) > INLINE_LIMIT,
    )
    _compare(first, inputs, out, config, torch)


def _inputs(model: Any, config: Any, torch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import inspect

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    takes = inspect.signature(model.forward).parameters
    if "input_ids" in takes:
        longest = int(getattr(config, "max_position_embeddings", 16) or 16)
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in takes]
        values = {name: _texts(name, 2, max(2, min(8, longest - 3)), config, torch) for name in names}
        return values, {name: {0: batch, 1: sequence} for name in names}
    if "pixel_values" in takes:
        size = config.image_size if hasattr(config, "image_size") else 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        pictures = torch.randn((2, int(getattr(config, "num_channels", 3)), int(height), int(width)))
        return {"pixel_values": pictures}, {"pixel_values": {0: batch}}
    raise ValueError(f"it takes {', '.join(takes)}; only texts (input_ids) and pictures (pixel_values) are known here")


def _texts(name: str, rows: int, length: int, config: Any, torch: Any) -> Any:
    """A tensor of its own for each input: the exporter takes one that is given twice for one input."""
    if name == "input_ids":
        return torch.randint(0, int(config.vocab_size), (rows, length))
    fill = torch.ones if name == "attention_mask" else torch.zeros
    return fill((rows, length), dtype=torch.int64)


def _compare(model: Any, inputs: dict[str, Any], out: Path, config: Any, torch: Any) -> None:
    """Raises ValueError unless the file computes what the model does, at another size and with padding."""
    import onnxruntime

    if "input_ids" in inputs:
        length = inputs["input_ids"].shape[1] - 1
        inputs = {name: _texts(name, 3, length, config, torch) for name in inputs}
        if "attention_mask" in inputs:
            inputs["attention_mask"][2, 1:] = 0
    with torch.no_grad():
        wanted = model(*inputs.values()).numpy()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    # What stands at padding is nobody's result, and runtimes differ in what they leave there.
    tokens = got.ndim == 3 and "attention_mask" in inputs
    kept = inputs["attention_mask"].numpy() == 1 if tokens else ...
    error = abs(got[kept] - wanted[kept]).max() / max(abs(wanted[kept]).max(), 1e-30)
    if not error <= SAME:
        raise ValueError(f"the exported graph differs from the model by {error:.1e}, more than {SAME:g}")


def _weight_bytes(model: Any) -> int:
    return sum(tensor.numel() * 4 for tensor in model.parameters())


if __name__ == "__main__":
    _export(Path(sys.argv[1]), Path(sys.argv[2]))
