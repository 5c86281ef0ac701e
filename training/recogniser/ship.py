"""A training's result to the recogniser that ships, in one command: weights, confidence, engine, figures and card.

    python -m training.recogniser.ship RESULT --tokens tokens.json --language language.npz --shared ../shared/data

RESULT holds weights-*.safetensors, config.json and report.jsonl, as the training left them. OUT is the package's own
folder unless another is named. Prints every figure of the issue beside what is wanted; exit code 1 where one is missed.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aula.core.settings import Settings, load_settings
from aula.core.types import TranscribeRequest
from aula.engine.build import BuildOptions, build
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models.checkpoints import Checkpoint
from aula.models.ctc import ctc_recipe
from aula.models.ctc_confidence import Calibration, Evidence
from aula.models.ctc_config import CtcConfig, load_weights
from aula.models.ctc_rung import NAME, PACKAGED, open_transcriber
from aula.models.ctc_task import Labelled
from training.recogniser import calibrate, card, figures, questions
from training.recogniser.package import MOST_BYTES, add_confidence, package
from training.recogniser.questions import Spoken
from training.recogniser.voices import HELD_OUT

OPEN = TranscribeRequest()
GATE_CLIPS = 150


@dataclass(frozen=True)
class Row:
    """One figure beside what is wanted: at most, or at least."""

    name: str
    got: float
    wanted: float
    at_least: bool = False
    form: str = ".3f"

    @property
    def reached(self) -> bool:
        return self.got >= self.wanted if self.at_least else self.got <= self.wanted

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        verdict = "reached" if self.reached else "MISSED"
        return f"| {self.name} | {self.got:{self.form}} | {bound} {self.wanted:{self.form}} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--language", type=Path, help="what training.recogniser.language wrote")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    parser.add_argument("--questions", type=Path, help="shards of them, rather than voices here")
    parser.add_argument("--most", type=int, default=10**9, help="clips of each set, to try the command")
    options = parser.parse_args()
    rows = ship(
        options.result, options.out, options.tokens, options.language, options.shared, options.questions, options.most
    )
    print("\n".join(["| figure | got | wanted | |", "|---|---|---|---|", *map(str, rows)]))
    raise SystemExit(0 if all(row.reached for row in rows) else 1)


def ship(
    result: Path,
    out: Path,
    tokens: Path,
    language: Path | None,
    shared: Path,
    asked_aloud: Path | None = None,
    most: int = 10**9,
) -> list[Row]:
    settings = load_settings()
    with tempfile.TemporaryDirectory() as folder:
        # 1. The folder that ships, and the same in float32 to compare with.
        exact = package(result, Path(folder) / "exact", tokens, language, rounded=False)
        checkpoint = package(result, out, tokens, language)
        dev = list(figures.recorded(shared, "dev"))[:most]
        test = list(figures.recorded(shared, "test"))[:most]
        other = list(figures.other_sounds(shared, 60))[:most]

        # 2. How sure it may be: fitted on speakers of the dev set and half of the other sounds.
        transcriber = open_transcriber(out, settings)
        fitted = figures.listen(transcriber, [*dev, *other[::2]], OPEN)
        transcriber.close()
        try:
            calibration = calibrate.fit(fitted)
            add_confidence(checkpoint, calibration.weights, calibration.bias)
        except ValueError as error:
            print(f"no confidence: {error}", file=sys.stderr)
            calibration = Calibration((0.0,) * len(Evidence.__slots__), 0.0)

        # 3. The engine, gated by people's clips; and as a user's machine builds it.
        drop = gate(checkpoint, settings, [*dev, *test][:: max(1, len([*dev, *test]) // GATE_CLIPS)])
        transcriber = open_transcriber(out, settings)

        # 4. Words.
        rows = questions.questions()
        spoken = (
            questions.spoken_before(asked_aloud)
            if asked_aloud
            else questions.read_aloud([row["question"] for row in rows])
        )
        tried = figures.listen(transcriber, test, OPEN)
        least = settings.number("question.min_confidence")
        kept, spoilt = calibrate.quality([*tried, *figures.listen(transcriber, other[1::2], OPEN)], calibration, least)
        asked = figures.listen(transcriber, spoken, figures.course_request())
        plainly = figures.listen(transcriber, spoken, OPEN)
        found = figures.found_share([" ".join(word.text for word in one.heard) for one in asked], rows, settings)
        transcriber.close()
        unrounded = open_transcriber(exact.folder, settings)
        whole = figures.error_rates(test, figures.listen(unrounded, test, OPEN))
        unrounded.close()

        # 5. What it costs, and the card.
        cost = figures.cost_apart(out, settings.home)
        config = CtcConfig.from_checkpoint(checkpoint)
        weights = load_weights(checkpoint, config)
        report = [json.loads(line) for line in (result / "report.jsonl").read_text("utf-8").splitlines() if line]
        measured = card.Measured(
            trained=checkpoint.read_json("config.json")["trained"],
            parameters=sum(array.size for array in weights.values()),
            chunk=config.chunk,
            bytes=checkpoint.weights_file.stat().st_size,
            greedy=card.greedy_rates(report),
            whole=whole,
            shipped=figures.error_rates(test, tried) | figures.error_rates(spoken, plainly),
            in_course=figures.error_rates(spoken, asked),
            found=found,
            questions=len(rows),
            kept=kept,
            spoilt=spoilt,
            least=least,
            cost=cost,
        )
        (out / "CARD.md").write_text(card.written(measured), "utf-8")
        return table(measured, drop)


def gate(checkpoint: Checkpoint, settings: Settings, clips: Sequence[Spoken]) -> float:
    """Builds with int8 judged by these clips, as `aula build` would, and tells what int8 lost, in points of a hundred.

    Raises SystemExit where int8 did not pass or is not what was chosen."""
    sounds = [(clip.sound, clip.text) for clip in clips]
    labelled = Labelled(lambda: sounds, len(sounds), _digest(clips))
    model = Model.of(ctc_recipe(checkpoint, NAME, labelled=labelled))
    bundle = build(model, Store(settings.home / "engines"), BuildOptions(("fp32", "int8")))
    engine = bundle.engine()
    metrics = {one.precision: one.metric for one in engine.candidates if one.metric is not None}
    print(f"engine: {engine.precision} on {engine.backend}; {metrics}")
    return 100 * (metrics.get("fp32", 0.0) - metrics.get("int8", 0.0))


def table(measured: card.Measured, drop: float) -> list[Row]:
    """The figures that the issue asks for."""
    shipped, in_course = measured.shipped, measured.in_course
    rows = [
        Row("WER speechocean762, speakers not in training", shipped.get("speechocean762", (1.0, 0))[0], 0.35),
        *(Row(f"WER {voice}, never trained on", shipped[voice][0], 0.10) for voice in HELD_OUT if voice in shipped),
        Row("points that int8 loses", drop, 1.0, form=".2f"),
        Row("right passage among five", measured.found, 0.85, at_least=True, form=".2f"),
        Row("real-time factor on one core", measured.cost.rtf, 0.05),
        Row("ms from commit to text", measured.cost.commit_ms, 40, form=".1f"),
        Row("MB of memory", measured.cost.opened_mb, 150, form=".0f"),
        Row("bytes of weights in MB", measured.bytes / 1e6, MOST_BYTES / 1e6, form=".1f"),
        Row("million weights", measured.parameters / 1e6, 15, form=".1f"),
    ]
    for group in ("speechocean762, children", "speechocean762, adults"):
        if group in shipped:
            rows.insert(1, Row(f"WER {group}", shipped[group][0], 0.35))
    rows.insert(-6, Row("WER of course questions, with the course", card.overall(in_course), 0.10))
    return rows


def _digest(clips: Sequence[Spoken]) -> str:
    whole = hashlib.sha256()
    for clip in clips:
        whole.update(clip.sound.tobytes() + clip.text.encode())
    return whole.hexdigest()


if __name__ == "__main__":
    main()
