"""A Whisper small enough for milliseconds, with every part of the true architecture."""

from typing import TYPE_CHECKING, Any

from aula.engine.recipe import Profile

if TYPE_CHECKING:
    import onnx

SMALL: dict[str, Any] = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "num_mel_bins": 20,
    "vocab_size": 310,
    "max_source_positions": 50,
    "max_target_positions": 80,
    "suppress_tokens": [1, 2, 7],
    "begin_suppress_tokens": [30, 309],
    # transformers wants these; the recipe does not read them
    "pad_token_id": 0,
    "bos_token_id": 309,
    "eos_token_id": 309,
    "decoder_start_token_id": 308,
}
SEED = 11
INPUTS = 20
POSITIONS = (50, 31)
"""The whole context, and a shorter one."""

PROMPT = (308, 17, 42)
TOKENS = 24


def bounds_of(graph: "onnx.ModelProto", profile: Profile) -> dict[str, tuple[tuple[int, int], ...]]:
    """What a session is opened with that serves this profile alone."""
    sizes = {name: (size.least, size.greatest) for name, size in profile.sizes.items()}
    return {
        value.name: tuple(sizes.get(axis.dim_param, (axis.dim_value,) * 2) for axis in value.type.tensor_type.shape.dim)
        for value in graph.graph.input
    }
