"""Whisper whole on a GPU beside the same on this machine's processor: a script for a GPU host, and what its test runs.

    python -m tests.gpu.whisper_whole --work FOLDER

A checkpoint of made-up weights is built for the GPU by the product's builder, opened as a lesson opens it, and asked
the same as the plain fp32 graphs on the processor: languages, texts, texts with times, drafts, chance, rows. Where a
text differs, the difference of the two tokens' logits on the processor tells whether it was a tie. Then a question of
five seconds is timed from samples to text, in this process and in one of its own. Nothing is downloaded; a second run
builds nothing, and `--only` builds, compares or times alone.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.cuda import Cuda
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session, SessionOptions, open_session
from aula.core.clock import SystemClock
from aula.core.settings import Settings, load_settings
from aula.core.types import Float32
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.plans import PlanOptions
from aula.engine.recipe import Recipe
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.models import whisper
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_device import encoder_frames
from aula.models.whisper_device_rows import DeviceEngine
from aula.models.whisper_engines import find_device_bundle, open_whole
from aula.models.whisper_hearing import Heard, HearingOptions, WhisperHearing
from aula.models.whisper_mel import MelStream
from aula.models.whisper_passes import WhisperPasses
from aula.models.whisper_reader import ROWS
from aula.models.whisper_rows import HostEngine
from aula.models.whisper_seeded import made_up_tokenizer
from aula.models.whisper_text import Text
from aula.models.whisper_tokenizer import WhisperTokenizer

TOKENS = 20
SECONDS = 5
FEW = 6
TIE = 0.25
"""Two tokens whose logits differ by less than this, relative to all logits' deviation, are a tie in half precision."""
PLAIN = HearingOptions(TOKENS, (0.0,), least_logprob=-1e9, most_compression=1e9)
"""Made-up weights are never sure of what they say, and never come to an end."""
HEATED = replace(PLAIN, temperatures=(0.0, 0.4), least_logprob=1.0)
"""Every text is suspect, and is written again by chance."""


@dataclass(frozen=True, slots=True)
class Side:
    """The processor or the GPU."""

    hearing: Callable[[HearingOptions], WhisperHearing]
    passes: WhisperPasses
    engine: Any


@dataclass(frozen=True, slots=True)
class Row:
    """`equal` of `of` were the same; `gaps` are the logits' differences where the others parted, of which ties are
    below TIE."""

    what: str
    equal: int
    of: int
    gaps: tuple[float, ...] = ()
    share: float = 1.0
    """How much of it must be equal or a tie: less where one probability decides and nobody tells how near it was."""

    @property
    def is_explained(self) -> bool:
        return self.equal + sum(gap < TIE for gap in self.gaps) >= self.share * self.of

    def line(self) -> str:
        gaps = f"  parted at logits {', '.join(f'{gap:.3f}' for gap in self.gaps)} apart" if self.gaps else ""
        return f"{self.what:<42} {self.equal:>3} of {self.of:<3} equal{gaps}{'' if self.is_explained else '  NO TIE'}"


class Whole:
    """Everything is built into `work`, once."""

    def __init__(self, work: Path, raw: Mapping[str, Any], level: int, threads: int = 0) -> None:
        self.settings: Settings = load_settings({"AULA_HOME": str(work), "AULA_THREADS": str(threads)}, ())
        folder = work / "checkpoints" / f"whole-{raw['d_model']}"
        if not (folder / "tokenizer.json").exists():
            whisper.random_checkpoint(raw, folder, 5)
            made_up_tokenizer(folder, raw["vocab_size"])
        self.checkpoint = Checkpoint(folder)
        self.config = WhisperConfig.from_checkpoint(self.checkpoint)
        self.tokenizer = WhisperTokenizer.open(self.checkpoint, self.config)
        capability = Cuda.open().capability()
        self.target = next(name for name, known in TARGETS.items() if known.capability == capability)
        model = whisper.whisper_model(self.checkpoint, folder.name)
        options = BuildOptions(target=self.target, plans=PlanOptions(level=level))
        build(model, Store(self.settings.home / "engines"), options, progress=_say)
        # As a lesson finds it.
        self.on_gpu: Bundle = find_device_bundle(self.checkpoint, self.settings, self.target)
        self._threads = threads

    @contextmanager
    def gpu(self, hosting: Hosting | None = None) -> Iterator[Side]:
        with open_whole(self.on_gpu, self.target, 0, hosting) as session:
            engine = DeviceEngine(self.config, session)
            passes = WhisperPasses(self.config, engine, SystemClock())
            offered = tuple(encoder_frames(self.on_gpu, self.target))
            yield Side(lambda options: self._hearing(passes, options, offered), passes, engine)

    @contextmanager
    def cpu(self) -> Iterator[tuple[Side, WhisperDecoding]]:
        encoder, decoder = (
            self._plain(recipe(self.checkpoint, name))
            for name, recipe in (("encoder", whisper.encoder_recipe), ("decoder", whisper.decoder_recipe))
        )
        with encoder, decoder:
            engine = HostEngine(self.config, encoder, decoder, most=whisper.MOST_ROWS)
            passes = WhisperPasses(self.config, engine, SystemClock())
            offered = tuple(encoder_frames(self.on_gpu, self.target))  # the same contexts
            side = Side(lambda options: self._hearing(passes, options, offered), passes, engine)
            yield side, WhisperDecoding(self.config, encoder, decoder)

    def _plain(self, recipe: Recipe) -> Session:
        import onnx

        path = self.checkpoint.folder / f"{recipe.name}.onnx"
        if not path.exists():
            onnx.save(recipe.write_graph(), str(path))
        return open_session("openvino", path, SessionOptions(threads=self._threads))

    def _hearing(self, passes: WhisperPasses, options: HearingOptions, offered: tuple[int, ...]) -> WhisperHearing:
        contexts = replace(Contexts.of(self.config, 1.0), offered=offered)
        hearing = WhisperHearing(self.config, None, self.tokenizer, contexts, options)
        hearing.share(passes)
        return hearing


def compare(whole: Whole, sounds: int = 6, told: Callable[[Row], None] = lambda _row: None) -> list[Row]:
    """GPU and processor on the same sounds, of which at most FEW are asked in every other way. Each row is told as soon
    as it is known."""
    with whole.cpu() as (cpu, decoding), whole.gpu() as gpu:
        every = [mel_of(whole, seed, 1.0 + seed % 5) for seed in range(sounds)]
        heard = every[:FEW]
        judge = _Judge(whole, decoding)
        rows: list[Row] = []

        def tell(row: Row) -> None:
            rows.append(row)
            told(row)

        sides = {"cpu": cpu.hearing(PLAIN), "gpu": gpu.hearing(PLAIN)}

        def both(work: Callable[[WhisperHearing, MelStream], Heard]) -> list[tuple[Heard, Heard]]:
            return [(work(sides["cpu"], mel), work(sides["gpu"], mel)) for mel in heard]

        # 1. A language for each, found; texts, from the window and from the short context.
        found = both(lambda hearing, mel: hearing.final(mel, None))
        same = sum(one.language == two.language for one, two in found)
        tell(Row("languages found", same, len(heard), share=0.85))
        near = sum(abs(np.log(one.no_speech / two.no_speech)) < 0.3 for one, two in found)
        tell(Row("no-speech probabilities, within a third", near, len(heard), share=0.85))
        language = found[0][0].language
        heard = every
        plain = both(lambda hearing, mel: hearing.final(mel, language))
        tell(judge.row("texts of the window", heard, plain))
        tell(judge.row("hypotheses of the short context", heard, both(lambda h, mel: h.draft(mel, language))))
        # 2. On the GPU: drafts and neighbours change nothing.
        hearing, texts = sides["gpu"], [two.tokens for _, two in plain]
        runs = sum(two.runs for _, two in plain)
        for what, change in _DRAFTS.items():
            drafted = [
                hearing.final(mel, language, draft=change(text), sure=1) for mel, text in zip(heard, texts, strict=True)
            ]
            equal = sum(one.tokens == text for one, text in zip(drafted, texts, strict=True))
            tell(Row(f"GPU: {what} draft, {sum(one.runs for one in drafted)} runs of {runs}", equal, sounds))
        tell(_rows_row(whole, gpu, heard, plain))
        # 3. With times, and by chance: the host chooses, from the GPU's logits.
        heard = every[:FEW]
        timed = both(lambda hearing, mel: hearing.final(mel, language, timestamps=True))
        tell(judge.row("texts with times", heard, timed, timestamps=True))
        sides = {"cpu": cpu.hearing(HEATED), "gpu": gpu.hearing(HEATED)}
        warm = both(lambda hearing, mel: hearing.final(mel, language))
        tell(Row("texts by chance, after a fallback", sum(map(_same, warm)), len(heard), share=0.5))
        # 4. The rule that silences whoever does not speak, at a bound between the sounds.
        likely = sorted(one.no_speech for one, _ in found)
        bound = max(pairwise(likely), key=lambda pair: pair[1] / pair[0])
        quiet = replace(PLAIN, silence=float(np.sqrt(bound[0] * bound[1])), least_logprob=1.0)
        sides = {"cpu": cpu.hearing(quiet), "gpu": gpu.hearing(quiet)}
        ruled = both(lambda hearing, mel: hearing.final(mel, None))
        tell(Row("silenced alike", sum((not a.tokens) == (not b.tokens) for a, b in ruled), len(heard), share=0.85))
    return rows


_DRAFTS: Mapping[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "a right": lambda text: text,
    "a half right": lambda text: (*text[:7], 11, *text[8:]),
    "a wrong": lambda text: tuple(token + 1 for token in text),
}


def _rows_row(whole: Whole, gpu: Side, heard: Sequence[MelStream], plain: Sequence[tuple[Heard, Heard]]) -> Row:
    """All at once, more than there are rows; each joins while the others write."""
    rows, texts = gpu.engine.rows(), []
    special = whole.tokenizer.special
    for mel, (_, two) in zip(heard, plain, strict=True):
        sound = gpu.engine.listen(mel.features(two.frames))
        text = Text(whole.config, special.prompt(two.language), special.end, limit=TOKENS)
        while rows.is_full:
            rows.step()
        rows.join(sound, text)
        texts.append(text)
    while len(rows):
        rows.step()
    equal = sum(text.written().tokens == two.tokens for text, (_, two) in zip(texts, plain, strict=True))
    return Row(f"GPU: {len(heard)} texts in {ROWS} rows", equal, len(heard))


class _Judge:
    """Says of two texts that differ how far apart the two tokens were on the processor, where they parted."""

    def __init__(self, whole: Whole, decoding: WhisperDecoding) -> None:
        self._whole, self._decoding = whole, decoding

    def row(
        self,
        what: str,
        heard: Sequence[MelStream],
        pairs: Sequence[tuple[Heard, Heard]],
        *,
        timestamps: bool = False,
    ) -> Row:
        gaps = tuple(
            self._gap(mel, *pair, timestamps=timestamps)
            for mel, pair in zip(heard, pairs, strict=True)
            if not _same(pair)
        )
        return Row(what, len(pairs) - len(gaps), len(pairs), gaps)

    def _gap(self, mel: MelStream, one: Heard, two: Heard, *, timestamps: bool) -> float:
        if one.language != two.language:
            return float("inf")
        special = self._whole.tokenizer.special
        place = next((n for n, (a, b) in enumerate(zip(one.tokens, two.tokens, strict=False)) if a != b), None)
        if place is None:
            return float("inf")
        parted: list[float] = []

        def follow(logits: Float32, tokens: Sequence[int]) -> tuple[int, float]:
            if len(tokens) == place:
                spread = float(logits.std())
                parted.append(abs(float(logits[one.tokens[place]] - logits[two.tokens[place]])) / spread)
            return one.tokens[len(tokens)], 0.0

        self._decoding.listen(mel.features(one.frames))
        prompt = special.prompt(one.language, timestamps=timestamps)
        self._decoding.write(prompt, special.end, limit=place + 1, choose=follow)
        return parted[0]


def _same(pair: tuple[Heard, Heard]) -> bool:
    return pair[0].tokens == pair[1].tokens


def mel_of(whole: Whole, seed: int, seconds: float) -> MelStream:
    mel = MelStream(whole.config.num_mel_bins)
    mel.feed(sound_of(seed, seconds))
    return mel


def sound_of(seed: int, seconds: float) -> Float32:
    """A tone that glides, in noise."""
    moments = np.arange(int(seconds * 16_000)) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (150 + 300 * (seed % 3) + 200 * np.sin(3 * moments)) * moments)
    return np.asarray(tone + 0.05 * np.random.default_rng(seed).standard_normal(len(moments)), dtype=np.float32)


def _say(what: str, _share: float | None) -> None:
    print(f"  {time.strftime('%T')} {what}", flush=True)


def main() -> None:
    from tests.gpu.whisper_times import timings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--architecture", default="whisper-tiny", help="one of the published sizes")
    parser.add_argument("--level", type=int, default=1, help="TensorRT's builder optimisation level")
    parser.add_argument("--only", choices=("build", "compare", "time"), help="one of these; all where nothing is said")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 takes all")
    parser.add_argument("--sounds", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    whole = Whole(options.work, whisper.architecture(options.architecture), options.level, options.threads)
    for part in ("encoder", "decoder"):
        for candidate in whole.on_gpu.engine(part, whole.target).candidates:
            print(f"{part}: {candidate}")
    print(f"built or found after {time.perf_counter() - began:.0f} s", flush=True)
    record: dict[str, Any] = {"architecture": options.architecture, "target": whole.target}
    rows: list[Row] = []
    try:
        if options.only in (None, "time"):
            record["ms"] = told = timings(whole, options.repetitions)
            print(*(f"{what:<62} p50 {p50:>8.3f} p95 {p95:>8.3f} ms" for what, (p50, p95) in told.items()), sep="\n")
        if options.only in (None, "compare"):
            rows = compare(whole, options.sounds, lambda row: print(row.line(), flush=True))
    finally:
        record["rows"] = [[row.what, row.equal, row.of, *row.gaps] for row in rows]
        record["seconds"] = round(time.perf_counter() - began)
        if options.json:
            options.json.write_text(json.dumps(record, default=float))
    print(json.dumps(record, default=float))
    unexplained = [row.what for row in rows if not row.is_explained]
    if unexplained:
        raise SystemExit(f"not equal, and no tie: {', '.join(unexplained)}")


if __name__ == "__main__":
    main()
