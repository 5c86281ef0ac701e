"""Whisper as a lesson is served by a GPU, beside the same on this machine's processor.

    python -m pytest -m gpu tests/gpu/test_whisper_whole.py

`python -m tests.gpu.whisper_whole` does the same with a published size, and times it.
"""

from pathlib import Path
from typing import Any

import pytest

from aula.core.errors import AulaError
from aula.models import whisper
from tests.gpu.whisper_whole import Whole, compare

pytestmark = pytest.mark.gpu

RAW: dict[str, Any] = {
    **whisper.architecture("whisper-tiny"),
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "max_source_positions": 400,
}


def test_the_whole_path_says_what_the_processor_says(tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401

        from aula.backends.cuda import Cuda

        Cuda.open()
    except (ImportError, AulaError) as reason:
        pytest.skip(f"no GPU with TensorRT here: {reason}")
    for row in compare(Whole(tmp_path, RAW, level=1), sounds=4):
        assert row.is_explained, row.line()
