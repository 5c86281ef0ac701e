"""Whisper by PyTorch: `generate` as its users run it, and the strongest recognition that we can write by hand.

Imports nothing of aula: it runs under the interpreter that has torch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from benchmarks.gpu.rows import PROMPT
from benchmarks.gpu.rows import TOKENS as NEW
from benchmarks.gpu.torch_timing import Bench, Run

WINDOW_FRAMES = 3000


def load_whisper(bench: Bench, dtype: torch.dtype) -> Any:
    return bench.kept(("whisper", dtype), lambda: _load(bench, dtype))


def _load(bench: Bench, dtype: torch.dtype) -> Any:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(
        bench.work / "whisper-small", dtype=dtype, local_files_only=True
    )
    # Made up here, since the checkpoint brings none: no end, hence exactly NEW tokens, and no token forbidden.
    model.generation_config = GenerationConfig(
        decoder_start_token_id=PROMPT[0],
        pad_token_id=50257,
        eos_token_id=None,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        do_sample=False,
        num_beams=1,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        max_length=None,
    )
    model.config.forced_decoder_ids = None
    return model.eval().to(bench.device)


def mels(bench: Bench, rows: int, frames: int, dtype: torch.dtype, *, same: bool = False) -> torch.Tensor:
    """[rows, bins, frames]: the stored frames, then each row's floor; with `same`, the first row again and again."""
    stored = bench.load("whisper")
    order = torch.arange(rows, device=bench.device) % (1 if same else len(stored["mel"]))
    mel, floor = stored["mel"][order], stored["floor"][order]
    whole = floor[:, None, None].expand(rows, mel.shape[1], frames).clone()
    taken = min(frames, mel.shape[2])
    whole[:, :, :taken] = mel[:, :, :taken]
    return whole.to(dtype)


def generating(model: Any, mel: torch.Tensor) -> Run:
    prompt = torch.tensor([PROMPT], device=mel.device).expand(len(mel), -1)
    # With or without the prompt in front, as versions differ.
    return lambda: model.generate(input_features=mel, decoder_input_ids=prompt)[:, -NEW:]


class Hand:
    """Whisper's greedy recognition in plain torch: everything static and on the device, so that a CUDA graph holds it.

    `start` hears the sound, computes the cross keys and values once and reads the prompt; `step` says one more token.
    `said`, int64 [rows, NEW], is all that leaves the device.
    """

    def __init__(self, model: Any, mel: torch.Tensor, *, watch: bool = False) -> None:
        self.model, self.mel, self.rows = model, mel, len(mel)
        encoder, decoder = model.model.encoder, model.model.decoder
        self.positions = encoder.embed_positions.weight[: mel.shape[2] // 2]
        self.encoder_layers = [_Layer(layer, cross=False) for layer in encoder.layers]
        self.decoder_layers = [_Layer(layer, cross=True) for layer in decoder.layers]
        like = {"device": mel.device, "dtype": mel.dtype}
        slots = len(PROMPT) + NEW
        attention = decoder.layers[0].self_attn
        shape = (self.rows, attention.num_heads, slots, attention.head_dim)
        self.cache = [(torch.zeros(shape, **like), torch.zeros(shape, **like)) for _ in decoder.layers]
        self.cross: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.prompt = torch.tensor([PROMPT], device=mel.device).expand(self.rows, -1).contiguous()
        self.slot = torch.arange(slots, device=mel.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=mel.device)
        self.said = torch.zeros((self.rows, NEW), dtype=torch.int64, device=mel.device)
        self.gaps: list[torch.Tensor] | None = [] if watch else None

    def start(self) -> torch.Tensor:
        encoder = self.model.model.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(self.mel)))).transpose(1, 2) + self.positions
        for layer in self.encoder_layers:
            x = layer.feed(x + layer.own(x, lambda q, k, v: F.scaled_dot_product_attention(q, k, v)))
        x = encoder.layer_norm(x)
        self.cross = [layer.cross_of(x) for layer in self.decoder_layers]
        self.position.fill_(len(PROMPT))

        def remember(number: int, q: Any, k: Any, v: Any) -> Any:
            keys, values = self.cache[number]
            keys[:, :, : len(PROMPT)] = k
            values[:, :, : len(PROMPT)] = v
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        self.said[:, :1] = self._next(self.prompt, slice(0, len(PROMPT)), remember)
        return self.said

    def step(self) -> torch.Tensor:
        """Reads the token said last, at its place in the text, and says the next."""
        visible = (self.slot <= self.position)[None, None, None]
        token = self.said.index_select(1, self.position - len(PROMPT))

        def remember(number: int, q: Any, k: Any, v: Any) -> Any:
            keys, values = self.cache[number]
            keys.index_copy_(2, self.position, k)
            values.index_copy_(2, self.position, v)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)

        following = self._next(token, self.position, remember)
        self.said.index_copy_(1, self.position - len(PROMPT) + 1, following)
        self.position += 1
        return self.said

    def _next(self, tokens: torch.Tensor, places: Any, remember: Callable[..., Any]) -> torch.Tensor:
        decoder = self.model.model.decoder
        x = F.embedding(tokens, decoder.embed_tokens.weight) + decoder.embed_positions.weight[places]
        for number, layer in enumerate(self.decoder_layers):
            x = x + layer.own(x, lambda q, k, v, number=number: remember(number, q, k, v))
            x = layer.feed(x + layer.hear(x, *self.cross[number]))
        scores = F.linear(decoder.layer_norm(x[:, -1:]), decoder.embed_tokens.weight)
        if self.gaps is not None:
            best = scores.float().topk(2, dim=-1).values
            self.gaps.append(best[:, 0, 0] - best[:, 0, 1])
        return scores.argmax(dim=-1)


class _Layer:
    """An encoder's or decoder's layer over the checkpoint's modules, query, key and value as one product."""

    def __init__(self, layer: Any, *, cross: bool) -> None:
        self.layer = layer
        attention = layer.self_attn
        self.heads, self.size = attention.num_heads, attention.head_dim
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.weight = torch.cat([part.weight for part in parts])
        no_bias = torch.zeros_like(attention.q_proj.bias)
        self.bias = torch.cat([no_bias if part.bias is None else part.bias for part in parts])
        self.hears: Any = layer.encoder_attn if cross else None

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.size)).transpose(1, 2)

    def own(self, x: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        mixed = F.linear(self.layer.self_attn_layer_norm(x), self.weight, self.bias)
        q, k, v = (self._split(part) for part in mixed.chunk(3, dim=-1))
        produced: torch.Tensor = self.layer.self_attn.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return produced

    def cross_of(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.hears.k_proj(sound), self.hears.v_proj(sound)
        return self._split(k).contiguous(), self._split(v).contiguous()

    def hear(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        q = self._split(self.hears.q_proj(self.layer.encoder_attn_layer_norm(x)))
        mixed = F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)
        produced: torch.Tensor = self.hears.out_proj(mixed)
        return produced

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.layer.fc2(F.gelu(self.layer.fc1(self.layer.final_layer_norm(x))))
        return x + inner


def recognising(hand: Hand, start: Run, step: Run) -> Run:
    def run() -> torch.Tensor:
        start()
        for _ in range(NEW - 1):
            step()
        return hand.said

    return run


def graphed_hand(bench: Bench, model: Any, mel: torch.Tensor, *, compiled: bool = False) -> Run:
    """Two graphs: from sound to the first token, and one token more."""
    hand = Hand(model, mel)
    if compiled:
        torch._dynamo.reset()
    start = bench.graphed(torch.compile(hand.start) if compiled else hand.start)
    # Warming up moves the position on; it starts anew, or it would leave the text.
    start()
    step = torch.compile(hand.step) if compiled else hand.step
    return recognising(hand, start, bench.graphed(step))
