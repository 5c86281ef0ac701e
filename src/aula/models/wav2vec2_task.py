"""A Wav2Vec2 that is judged: by a user's clips, or by this project's questions in synthetic voices."""

from dataclasses import replace

from aula.engine.recipe import Recipe
from aula.models import ctc_task
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_whole import WholeHearing
from aula.models.wav2vec2 import Wav2Vec2Config, normalises, read_alphabet, wav2vec2_recipe


def judged(checkpoint: Checkpoint, name: str, labelled: ctc_task.Labelled | None = None) -> Recipe:
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    return replace(
        wav2vec2_recipe(checkpoint, name),
        task=lambda: ctc_task.task(
            lambda session: WholeHearing(session, config, normalises=normalises(checkpoint)).whole,
            read_alphabet(checkpoint, config),
            labelled or ctc_task.spoken(),
        ),
    )
