"""The model forwards and backwards, where most of a step's time goes: launched kernel by kernel, or replayed.

A step launches some three thousand kernels, which takes a processor longer than the GPU needs to run them. On a GPU
each shape of batch is therefore recorded once, forwards and backwards, as two CUDA graphs, and replayed from then on:
the same kernels on the same numbers. Losses lie between the two and are launched as ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.recogniser.model import SUBSAMPLING, Recogniser


class Passes:
    """`forward` gives the outputs as leaves; what a loss leaves in their `grad`, `backward` carries to the weights."""

    def __init__(self, model: Recogniser, autocast: Callable[[], Any]) -> None:
        self._model, self._autocast = model, autocast
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._said: Sequence[Tensor] = ()
        self._leaves: list[Tensor] = []

    def forward(self, mel: Tensor, chunk: int) -> list[Tensor]:
        mask = self._model.mask(mel.shape[1] // SUBSAMPLING, chunk, mel.device)
        self._said = self._hear(mel, mask)
        return self._parted()

    def backward(self) -> None:
        grads = torch.autograd.grad(self._said, self._weights, [_pull(leaf) for leaf in self._leaves])
        for weight, grad in zip(self._weights, grads, strict=True):
            weight.grad = grad
        self._said, self._leaves = (), []

    def _hear(self, mel: Tensor, mask: Tensor) -> list[Tensor]:
        with self._autocast():
            return self._model.hear(mel, mask)

    def _parted(self) -> list[Tensor]:
        self._leaves = [one.detach().requires_grad_() for one in self._said]
        return self._leaves


@dataclass(frozen=True)
class Recording:
    """Two graphs and the tensors that they read and write, which stay where they are."""

    forwards: Any
    backwards: Any
    mel: Tensor
    mask: Tensor
    said: list[Tensor]
    pulls: list[Tensor]


class Replays(Passes):
    """Passes as CUDA graphs, one pair for each shape, all in one pool of memory: only one of them runs at a time.

    What cannot be recorded (no memory left, an operation that asks the processor) is launched as by Passes, for all
    shapes that come after; `refused` says why.
    """

    def __init__(self, model: Recogniser, autocast: Callable[[], Any]) -> None:
        super().__init__(model, autocast)
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._grads = [torch.zeros_like(weight) for weight in self._weights]
        self._playing: Recording | None = None
        self.refused = ""

    def __len__(self) -> int:
        return len(self._recordings)

    def forward(self, mel: Tensor, chunk: int) -> list[Tensor]:
        recording = self._recordings.get(tuple(mel.shape))
        if recording is None and not self.refused:
            try:
                recording = self._recordings[tuple(mel.shape)] = self._record(mel, chunk)
            except RuntimeError as error:  # OutOfMemoryError is one
                torch.cuda.synchronize()
                self.refused = f"{tuple(mel.shape)}: {error}"
        self._playing = recording
        if recording is None:
            return super().forward(mel, chunk)
        recording.mel.copy_(mel)
        recording.mask.copy_(self._model.mask(len(recording.mask), chunk, mel.device))
        recording.forwards.replay()
        self._said = recording.said
        return self._parted()

    def backward(self) -> None:
        playing = self._playing
        if playing is None:
            super().backward()
            return
        for pull, leaf in zip(playing.pulls, self._leaves, strict=True):
            pull.copy_(_pull(leaf))
        playing.backwards.replay()
        for weight, grad in zip(self._weights, self._grads, strict=True):
            weight.grad = grad
        self._said, self._leaves = (), []

    def _record(self, mel: Tensor, chunk: int) -> Recording:
        mel = mel.clone()
        mask = self._model.mask(mel.shape[1] // SUBSAMPLING, chunk, mel.device).clone()
        # Once without recording, beside the stream that trains: libraries choose their kernels and take their memory.
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            said = self._hear(mel, mask)
            pulls = [torch.zeros_like(one) for one in said]
            torch.autograd.grad(said, self._weights, pulls)
        torch.cuda.current_stream().wait_stream(beside)
        del said
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what the rehearsal took is needed by the recording, whose memory is its own
        forwards, backwards = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forwards, pool=self._pool):
            said = self._hear(mel, mask)
        with torch.cuda.graph(backwards, pool=self._pool):
            torch._foreach_copy_(self._grads, list(torch.autograd.grad(said, self._weights, pulls)))
        # Detached, the outputs keep their place; all else that was recorded may be written over by other shapes.
        return Recording(forwards, backwards, mel, mask, [one.detach() for one in said], pulls)


def _pull(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def passes(model: Recogniser, autocast: Callable[[], Any], device: torch.device, *, replayed: bool) -> Passes:
    return Replays(model, autocast) if replayed and device.type == "cuda" else Passes(model, autocast)
