"""A small Conformer with CTC that hears in chunks: what it says of a chunk depends on that chunk and what came before.

Log-mel frames of 10 ms are halved twice by convolutions; nine blocks follow. Attention sees the frame's own chunk and
64 frames (2.56 s) before it, convolutions only look back, so a stream that keeps a little state computes exactly what
the whole file does. After blocks 3 and 6 the model says what it has understood so far: those outputs have their own
CTC loss and are fed back (self-conditioned CTC, Nozaki & Komatsu 2021, arXiv:2104.02724).

Block: Gulati et al. 2020, arXiv:2005.08100, with rotary positions (Su et al. 2021, arXiv:2104.09864) and LayerNorm
in the convolution, which needs no statistics of a batch.
"""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.recogniser.features import BINS

SUBSAMPLING = 4


@dataclass(frozen=True)
class Config:
    """Widths and contexts; times are in output frames of 40 ms. It is stored beside the weights."""

    units: int = 256
    width: int = 256
    heads: int = 4
    inner: int = 1024
    blocks: int = 9
    kernel: int = 15
    channels: int = 128
    left: int = 64
    chunk: int = 8
    said_after: tuple[int, ...] = (3, 6)
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Recogniser(nn.Module):
    """Log-mel float32 [B, T, 80] to log-probabilities float32 [B, T / 4, units], of the last and the inner outputs."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(BINS))
        self.register_buffer("scale", torch.ones(BINS))
        self.subsample = Subsample(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.says = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(len(config.said_after) + 1))
        self.output = nn.Linear(config.width, config.units)
        self.feedback = nn.Linear(config.units, config.width)

    def forward(self, mel: Tensor, chunk: int | None = None) -> list[Tensor]:
        """`chunk` is how many output frames are heard at once; the last item is the final output."""
        return self.hear(mel, self.mask(mel.shape[1] // SUBSAMPLING, chunk or self.config.chunk, mel.device))

    def mask(self, time: int, chunk: int, device: torch.device) -> Tensor:
        return chunk_mask(time, chunk, self.config.left, device)

    def hear(self, mel: Tensor, mask: Tensor) -> list[Tensor]:
        """The same with the frames that each frame may look at as a mask."""
        x = self.subsample((mel - self.mean) * self.scale)
        turns = rotations(x.shape[1], self.config.width // self.config.heads, x.device)
        said: list[Tensor] = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, turns)
            if number in self.config.said_after:
                heard = self.say(x, len(said))
                said.append(heard)
                x = x + self.feedback(heard.exp().to(x.dtype))
        return [*said, self.say(x, len(said))]

    def say(self, x: Tensor, which: int) -> Tensor:
        return functional.log_softmax(self.output(self.says[which](x)).float(), dim=-1)


class Subsample(nn.Module):
    """Two convolutions of stride 2 over time and frequency. Output frame t has seen input frames up to 4 t + 3."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        self.first = nn.Conv2d(1, channels, 3, stride=2)
        self.depth = nn.Conv2d(channels, channels, 3, stride=2, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1)
        self.out = nn.Linear(channels * BINS // 4, config.width)

    def forward(self, mel: Tensor) -> Tensor:
        x = functional.silu(self.first(_pad(mel[:, None])))
        x = functional.silu(self.point(self.depth(_pad(x))))
        return self.out(x.transpose(1, 2).flatten(2))


def _pad(x: Tensor) -> Tensor:
    """One frame before, none after (the future is not there yet); one frequency below."""
    return functional.pad(x, (1, 0, 1, 0))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.feed_in = FeedForward(config)
        self.attend = Attention(config)
        self.convolve = Convolution(config)
        self.feed_out = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + 0.5 * self.drop(self.feed_in(x))
        x = x + self.drop(self.attend(x, mask, turns))
        x = x + self.drop(self.convolve(x))
        x = x + 0.5 * self.drop(self.feed_out(x))
        return self.norm(x)


class FeedForward(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, config.inner)
        self.narrow = nn.Linear(config.inner, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.drop(functional.silu(self.widen(self.norm(x)))))


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = functional.scaled_dot_product_attention(turned(query, turns), turned(key, turns), value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


class Convolution(nn.Module):
    """Gated, depthwise over time, backwards only."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kernel = config.kernel
        self.norm = nn.LayerNorm(config.width)
        self.gate = nn.Linear(config.width, 2 * config.width)
        self.depth = nn.Conv1d(config.width, config.width, config.kernel, groups=config.width)
        self.middle = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.glu(self.gate(self.norm(x)), dim=-1)
        x = self.depth(functional.pad(x.transpose(1, 2), (self.kernel - 1, 0))).transpose(1, 2)
        return self.out(functional.silu(self.middle(x)))


@cache
def chunk_mask(time: int, chunk: int, left: int, device: torch.device) -> Tensor:
    """bool [time, time]: frame i may look at j where j lies in i's chunk or at most `left` frames before that chunk."""
    place = torch.arange(time, device=device)
    start = (place // chunk * chunk)[:, None]
    return (place[None] >= start - left) & (place[None] < start + chunk)


@cache
def rotations(time: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [time, size / 2], of rotary positions."""
    speeds = 10000 ** (-torch.arange(0, size, 2, device=device) / size)
    angles = torch.arange(time, device=device)[:, None] * speeds
    return angles.cos(), angles.sin()


def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (first half, second half) of the last axis turned by its position's angle; only differences matter."""
    cosine, sine = (turn.to(x.dtype) for turn in turns)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
