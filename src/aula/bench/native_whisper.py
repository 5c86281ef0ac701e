"""Whisper by transformers' own layers: the encoder with the decoder's cross keys and values, and the decoder's step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aula.bench.native_torch import ATTENTIONS, Way
from aula.bench.protocol import Arrays
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import suppression

WINDOW = "window"
"""The variant that pads to 30 s, as users of transformers do: its encoder refuses anything shorter."""
CACHES = ("static", "dynamic")


def ways(folder: str, part: str, variant: str) -> Mapping[str, Callable[[], Way]]:
    if "encoder" in part:
        return {name: lambda name=name: _Encoder(folder, name, variant == WINDOW) for name in ATTENTIONS}  # type: ignore[misc]
    return {
        f"{attention}, {cache} cache": lambda attention=attention, cache=cache: _Decoder(folder, attention, cache)  # type: ignore[misc]
        for attention in ATTENTIONS
        for cache in CACHES
    }


_LOADED: dict[str, Any] = {}


def _model(folder: str, attention: str) -> Any:
    """Loaded once: ways of the same attention share it."""
    import torch
    import transformers

    if attention not in _LOADED:
        _LOADED[attention] = transformers.WhisperForConditionalGeneration.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32, local_files_only=True
        ).eval()
    return _LOADED[attention]


class _Encoder:
    """mel to hidden states and the cross keys and values of every decoder layer, which transformers computes in its
    first decoder step. Where the mel is shorter than 30 s the encoder's own layers run on it as it is, with the
    positions cut; with `window` the mel is padded to 30 s."""

    def __init__(self, folder: str, attention: str, window: bool) -> None:
        import torch

        self._torch = torch
        self._model = _model(folder, attention)
        self._window = window
        self._mel: Any = None

    def prepare(self, inputs: Arrays) -> None:
        self._mel = self._torch.from_numpy(inputs["mel"]).float()
        if self._window:
            most = 2 * self._model.config.max_source_positions
            self._mel = self._torch.nn.functional.pad(self._mel, (0, most - self._mel.shape[-1]))

    def rewind(self) -> None:
        pass

    def run(self) -> Any:
        encoder, decoder = self._model.model.encoder, self._model.model.decoder
        if self._window:
            x = encoder(self._mel).last_hidden_state
        else:
            gelu = self._torch.nn.functional.gelu
            x = gelu(encoder.conv2(gelu(encoder.conv1(self._mel)))).permute(0, 2, 1)
            x = x + encoder.embed_positions.weight[: x.shape[1]]
            for layer in encoder.layers:
                produced = layer(x, None)
                x = produced[0] if isinstance(produced, tuple) else produced
            x = encoder.layer_norm(x)
        cross = []
        for layer in decoder.layers:
            attention = layer.encoder_attn
            shape = (*x.shape[:2], attention.num_heads, attention.head_dim)
            cross.append(
                [
                    project(x).view(shape).transpose(1, 2).contiguous()
                    for project in (attention.k_proj, attention.v_proj)
                ]
            )
        return x, cross

    def outputs(self, produced: Any) -> Arrays:
        if self._window:
            return {}
        hidden, cross = produced
        named = {"hidden": hidden.numpy()}
        for layer, (key, value) in enumerate(cross):
            named |= {f"cross_k.{layer}": key.numpy(), f"cross_v.{layer}": value.numpy()}
        return named


class _Decoder:
    """Tokens to the likeliest next ones, with the keys and values of earlier tokens and of the sound in a cache, as
    `generate` keeps them."""

    def __init__(self, folder: str, attention: str, cache: str) -> None:
        import torch

        self._torch = torch
        self._model = _model(folder, attention)
        self._kind = cache
        self._config = WhisperConfig.from_checkpoint(Checkpoint(Path(folder)))

    def prepare(self, inputs: Arrays) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

        torch = self._torch
        if len(inputs["tokens"]) != 1:
            raise ValueError("the bench's PyTorch decoder serves one row")
        self._tokens = torch.from_numpy(inputs["tokens"])
        self._rule = torch.from_numpy(inputs["rule"])
        self._places = torch.from_numpy(inputs["places"][0])
        self._past = int(inputs["position"][0])
        slots = inputs["past_k.0"].shape[2]
        cross, own = DynamicCache(), DynamicCache()
        for layer in range(self._config.decoder_layers):
            key, value = (torch.from_numpy(inputs[f"cross_{part}.{layer}"]).float() for part in "kv")
            cross.update(key, value, layer)
        if self._kind == "static":
            config = self._model.config
            config.num_hidden_layers = self._config.decoder_layers
            own = StaticCache(config, max_cache_len=max(slots, self._past + self._tokens.shape[1]))
        for layer in range(self._config.decoder_layers if self._past else 0):
            key, value = (torch.from_numpy(inputs[f"past_{part}.{layer}"]).float()[:, :, : self._past] for part in "kv")
            own.update(key.contiguous(), value.contiguous(), layer)
        self._own = own
        self._cache = EncoderDecoderCache(own, cross)
        # Only its presence counts: the cross cache already holds what would be computed from it.
        self._sound = torch.zeros(1, inputs["cross_k.0"].shape[2], self._config.d_model)
        self._kept = [(layer.keys, layer.values) for layer in own.layers] if self._past else []

    def rewind(self) -> None:
        for layer, (keys, values) in zip(self._own.layers, self._kept, strict=False):
            if self._kind == "static":
                layer.cumulative_length.fill_(self._past)
            else:
                layer.keys, layer.values = keys, values
        if not self._kept:
            self._own.reset()

    def run(self) -> Any:
        decoder = self._model.model.decoder
        hidden = decoder(
            input_ids=self._tokens,
            encoder_hidden_states=self._sound,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        logits = self._model.proj_out(hidden[:, self._places])
        return logits, logits.argmax(dim=-1)

    def outputs(self, produced: Any) -> Arrays:
        logits, _ = produced
        forbidden = self._torch.from_numpy(suppression(self._config))[self._rule]
        allowed = self._torch.log_softmax(logits + forbidden, dim=-1)
        named = {"logprob": allowed.max(dim=-1).values.numpy(), "logits": logits.numpy()}
        end = self._past + self._tokens.shape[1]
        for number, layer in enumerate(self._own.layers):
            named[f"new_k.{number}"] = layer.keys[:, :, self._past : end].numpy()
            named[f"new_v.{number}"] = layer.values[:, :, self._past : end].numpy()
        return named
