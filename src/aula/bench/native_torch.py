"""PyTorch as its users run it: eager mode, fp32, inference mode, the model that transformers (or timm) loads from the
very checkpoint that the engine was built from.

Where the library offers several ways to compute the same (attention as plain products or as one fused operator, a
growing or a static cache), each is tried while preparing and the fastest is raced: the rival is never crippled.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aula.bench.protocol import Arrays, Competitor
from aula.models.checkpoints import Checkpoint

ATTENTIONS = ("sdpa", "eager")
TRIALS = 5


class Way(Protocol):
    """One way to compute a part with PyTorch."""

    def prepare(self, inputs: Arrays) -> None: ...

    def rewind(self) -> None: ...

    def run(self) -> Any: ...

    def outputs(self, produced: Any) -> Arrays: ...


class Fastest:
    """Prepares every way, keeps the one whose runs are shortest, and is a competitor by it."""

    def __init__(self, ways: Mapping[str, Callable[[], Way]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._ways = {name: make() for name, make in ways.items()}
        self._way: Way = next(iter(self._ways.values()))
        self._produced: Any = None

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        times = {}
        with self._torch.inference_mode():
            for way in self._ways.values():
                way.prepare(inputs)
                way.run()
            # In turns, as the race itself does.
            tried: dict[str, list[float]] = {name: [] for name in self._ways}
            for _ in range(TRIALS if len(self._ways) > 1 else 0):
                for name, way in self._ways.items():
                    way.rewind()
                    start = time.perf_counter()
                    way.run()
                    tried[name].append(1000 * (time.perf_counter() - start))
            times = {name: round(statistics.median(tries), 3) for name, tries in tried.items() if tries}
        chosen = min(times, key=lambda name: times[name]) if times else next(iter(self._ways))
        self._way = self._ways[chosen]
        self.rewind()
        self.run()
        return {"variant": chosen, "tried_ms": times}

    def rewind(self) -> None:
        with self._torch.inference_mode():
            self._way.rewind()

    def run(self) -> None:
        with self._torch.inference_mode():
            self._produced = self._way.run()

    def outputs(self) -> Arrays:
        with self._torch.inference_mode():
            return self._way.outputs(self._produced)


def open_native(folder: str, part: str, threads: int, outputs: Sequence[str], variant: str) -> Competitor:
    """The part of the checkpoint in `folder` that gives `outputs`, the engine's names for them. Raises ValueError for
    a family that has no counterpart here."""
    checkpoint = Checkpoint(Path(folder))
    raw = checkpoint.read_json("config.json")
    family = raw.get("model_type") or ("timm" if "architecture" in raw else None)
    if family == "whisper":
        from aula.bench.native_whisper import ways

        return Fastest(ways(folder, part, variant), threads)
    if family == "bert":
        return Fastest({name: lambda name=name: _Bert(folder, name, outputs) for name in ATTENTIONS}, threads)  # type: ignore[misc]
    if family == "efficientnet":
        return Fastest({"": lambda: _Pictures(_transformers_classifier(folder))}, threads)
    if family == "timm":
        return Fastest({"timm": lambda: _Pictures(_timm_classifier(checkpoint, raw))}, threads)
    raise ValueError(f"the bench knows no PyTorch counterpart of {family!r}")


class _Bert:
    """Hidden states, a classification head's logits, or a sentence vector: the mean over the tokens that are there,
    scaled to length one, as sentence-transformers computes it."""

    def __init__(self, folder: str, attention: str, outputs: Sequence[str]) -> None:
        import torch
        import transformers

        self._torch = torch
        self._sentence = "embedding" in outputs
        if self._sentence and (Path(folder) / "modules.json").exists():
            _require_mean_pooling(Path(folder))
        kind = transformers.AutoModelForSequenceClassification if "logits" in outputs else transformers.AutoModel
        keep = {} if "logits" in outputs else {"add_pooling_layer": "pooled" in outputs}
        self._model: Any = kind.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32, local_files_only=True, **keep
        ).eval()
        self._inputs: dict[str, Any] = {}

    def prepare(self, inputs: Arrays) -> None:
        names = ("input_ids", "attention_mask", "token_type_ids")
        self._inputs = {name: self._torch.from_numpy(inputs[name]) for name in names if name in inputs}

    def rewind(self) -> None:
        pass

    def run(self) -> Any:
        produced = self._model(**self._inputs)
        if not self._sentence:
            return produced
        mask = self._inputs["attention_mask"].unsqueeze(-1).float()
        mean = (produced.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return self._torch.nn.functional.normalize(mean, p=2, dim=1)

    def outputs(self, produced: Any) -> Arrays:
        if self._sentence:
            return {"embedding": produced.numpy()}
        names = {"logits": "logits", "hidden": "last_hidden_state", "pooled": "pooler_output"}
        found = {ours: getattr(produced, theirs, None) for ours, theirs in names.items()}
        return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


class _Pictures:
    """An image classifier: pixels to logits."""

    def __init__(self, model: Any) -> None:
        import torch

        self._torch = torch
        self._model = model.eval()
        self._pixels: Any = None

    def prepare(self, inputs: Arrays) -> None:
        self._pixels = self._torch.from_numpy(inputs["pixel_values"])

    def rewind(self) -> None:
        pass

    def run(self) -> Any:
        produced = self._model(self._pixels)
        return getattr(produced, "logits", produced)

    def outputs(self, produced: Any) -> Arrays:
        return {"logits": np.asarray(produced.numpy())}


def _transformers_classifier(folder: str) -> Any:
    import torch
    import transformers

    return transformers.EfficientNetForImageClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


def _timm_classifier(checkpoint: Checkpoint, raw: Mapping[str, Any]) -> Any:
    import timm

    return timm.create_model(
        raw["architecture"], pretrained=False, num_classes=raw["num_classes"], checkpoint_path=checkpoint.weights_file
    )


def _require_mean_pooling(folder: Path) -> None:
    from aula.models.bert_modules import SentenceModules

    poolings = SentenceModules.from_checkpoint(Checkpoint(folder)).poolings
    if tuple(poolings) != ("mean",):
        raise ValueError(f"the bench's PyTorch counterpart knows mean pooling, not {', '.join(poolings)}")
