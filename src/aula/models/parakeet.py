"""Hugging Face's ParakeetForCTC as a recipe: log-mel frames in, logarithms of pieces' probabilities out.

The parts: `parakeet_config` sizes, weights and alphabet, `parakeet_mel` the front end, `parakeet_graph` the graph,
`parakeet_reference` what it is checked against. Attention is over the whole sound, and so is the front end's spread, so
this one does not stream.
"""

from collections.abc import Mapping

import numpy as np

from aula.backends.session import Session
from aula.core.types import SPEECH_RATE, Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_whole import LEAST, LONGEST_SECONDS, USUAL_SECONDS, WholeHearing, WholeKind
from aula.models.parakeet_config import TOKENIZER, ParakeetConfig, load_weights, read_alphabet
from aula.models.parakeet_graph import write_parakeet
from aula.models.parakeet_mel import ParakeetMel
from aula.models.parakeet_reference import ParakeetReference


def parakeet_recipe(
    checkpoint: Checkpoint, name: str, *, licences: tuple[Licence, ...] = (), seeded: bool = False
) -> Recipe:
    """mel, float32 [rows, frames, bins] (see `ParakeetMel`), to logarithms, float32 [rows, fewer frames, tokens]."""
    config = ParakeetConfig.from_checkpoint(checkpoint)
    mel = ParakeetMel.from_checkpoint(checkpoint, config.num_mel_bins)
    least, usual, most = (
        mel.frames(samples) for samples in (LEAST, USUAL_SECONDS * SPEECH_RATE, LONGEST_SECONDS * SPEECH_RATE)
    )

    def weights() -> dict[str, Float32]:
        return load_weights(checkpoint, config)

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        shape = (sizes["rows"], sizes["frames"], config.num_mel_bins)
        return {"mel": generator.standard_normal(shape, dtype=np.float32)}

    one = Size(1, 1, 1)
    described = [checkpoint.folder / file for file in (TOKENIZER, "preprocessor_config.json", "processor_config.json")]
    return Recipe(
        name=name,
        revision=1,
        sources=(
            *checkpoint.weights_files,
            checkpoint.folder / "config.json",
            *(file for file in described if file.is_file()),
        ),
        write_graph=lambda: write_parakeet(config, weights(), most),
        example=example,
        reference=ParakeetReference(config, weights),
        profiles=(
            Profile("question", {"rows": one, "frames": Size(least, usual, usual)}),
            Profile("long", {"rows": one, "frames": Size(usual, usual, most)}),
        ),
        limits={"frames": most},
        rows="rows",
        written={"int8": lambda: write_parakeet(config, weights(), most, int8_weights=True)},
        dynamic_quantisation=config.hidden_size,
        seeded=seeded,
        licences=licences,
    )


def hearing(session: Session, checkpoint: Checkpoint) -> WholeHearing:
    config = ParakeetConfig.from_checkpoint(checkpoint)
    mel = ParakeetMel.from_checkpoint(checkpoint, config.num_mel_bins)
    return WholeHearing(
        session,
        lambda samples: {"mel": mel(samples)[None]},
        units=config.vocab_size,
        frame_seconds=mel.hop * config.subsampling_factor / SPEECH_RATE,
    )


PARAKEET = WholeKind(
    parakeet_recipe, lambda checkpoint: read_alphabet(checkpoint, ParakeetConfig.from_checkpoint(checkpoint)), hearing
)
