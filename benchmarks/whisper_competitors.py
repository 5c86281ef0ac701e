"""Those who take part in `benchmarks/whisper.py`, each in a process and, where it likes, an interpreter of its own.

    python benchmarks/whisper_competitors.py '{"kind": "aula", …}'

Samples in memory to a text: front end, encoder, greedy tokens, tokenizer. All write the same number of tokens.
"""

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.bench.protocol import Arrays, Competitor, private_answers, serve
from aula.models.whisper_tokens import SpecialTokens

LANGUAGE = "en"


def _memory() -> dict[str, int]:
    """Resident MB of this process: above what an interpreter takes that does nothing, and the most so far (while it
    compiled, say)."""
    ask = "print(open('/proc/self/statm').read().split()[1])"
    bare = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) - int(bare)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"memory_mb": pages * resource.getpagesize() // 2**20, "most_memory_mb": most}


class _Base:
    """`write` gives the tokens of `self.samples`, at most `self.count`."""

    about: dict[str, Any]

    def __init__(self) -> None:
        self.about = {}

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        self.samples = np.asarray(inputs["samples"], dtype=np.float32)
        self.count = int(inputs["tokens"])
        self.draft = [int(token) for token in inputs.get("draft", ())]
        self.sure = int(inputs.get("sure", 0))
        self.ready()
        self.rewind()
        self.run()
        return {**self.about, **_memory(), "tokens": len(self.tokens)}

    def ready(self) -> None:
        pass

    def rewind(self) -> None:
        pass

    def run(self) -> None:
        self.tokens = self.write()

    def write(self) -> list[int]:
        raise NotImplementedError

    def outputs(self) -> Arrays:
        return {"tokens": np.array(self.tokens, dtype=np.int64)}


class Aula(_Base):
    """The engines of a bundle. `context` in seconds; `rows` texts of the same sound at once, encoded before."""

    def __init__(self, store: str, key: str, folder: str, context: float, rows: int = 0) -> None:
        super().__init__()
        from aula.engine.store import Store
        from aula.models.checkpoints import Checkpoint
        from aula.models.whisper_config import WhisperConfig
        from aula.models.whisper_decoding import WhisperDecoding
        from aula.models.whisper_engines import open_sessions
        from aula.models.whisper_tokenizer import WhisperTokenizer

        bundle = Store(Path(store)).open(key)
        self.config = WhisperConfig.from_checkpoint(Checkpoint(Path(folder)))
        self.tokenizer = WhisperTokenizer.open(Checkpoint(Path(folder)), self.config)
        self.sessions = open_sessions(bundle)
        self.decoding = WhisperDecoding(self.config, *self.sessions)
        self.frames, self.rows = round(100 * context), rows
        engines = {part: bundle.engine(part) for part in ("encoder", "decoder")}
        self.about = {part: f"{engine.precision} on {engine.backend}" for part, engine in engines.items()}
        special = self.tokenizer.special
        self.prompt = special.prompt(special.languages[0] if special.multilingual else None)
        # As it is served: warmed, and what only loading needed given back.
        self.decoding.listen(np.zeros((self.config.num_mel_bins, 200), dtype=np.float32))
        self.decoding.write(self.prompt, -1, limit=3)
        for session in self.sessions:
            session.settle()

    def ready(self) -> None:
        if self.rows:
            self.encoded = self.sessions[0].run({"mel": self._mel()[None]})

    def write(self) -> list[int]:
        if self.rows:
            return self._in_rows()
        self.decoding.listen(self._mel())
        # No token ends these texts: made-up weights end nowhere in particular.
        written = self.decoding.write(self.prompt, -1, limit=self.count, draft=self.draft, sure=self.sure)
        self.tokenizer.text(written.tokens)
        return list(written.tokens)

    def _in_rows(self) -> list[int]:
        from aula.models.whisper_rows import Sound, WhisperRows
        from aula.models.whisper_text import Text

        rows = WhisperRows(self.config, self.sessions[1], most=self.rows)
        texts = [Text(self.config, self.prompt, -1, limit=self.count) for _ in range(self.rows)]
        rows.write_all((Sound(self.encoded), text) for text in texts)
        return list(texts[0].written().tokens)

    def _mel(self) -> Any:
        from aula.models.whisper_mel import HOP, log_mel

        return log_mel(self.samples[: self.frames * HOP], self.config.num_mel_bins, self.frames)


class Live(Aula):
    """Streams as the runtime serves them: `streams` of the same sound whose clients commit at one moment, sharing
    passes; with `paused` each was told of a pause before."""

    def __init__(
        self, store: str, key: str, folder: str, context: float, streams: int = 1, paused: bool = False
    ) -> None:
        super().__init__(store, key, folder, context)
        from aula.core.clock import SystemClock
        from aula.models.whisper_contexts import BUCKETS, Contexts
        from aula.models.whisper_passes import WhisperPasses
        from aula.models.whisper_rows import HostEngine

        self.count_of, self.paused, self.clock = streams, paused, SystemClock()
        self.contexts = Contexts.of(self.config, 1.0, {bucket: max(bucket, context) for bucket in BUCKETS})
        engine = HostEngine(self.config, *self.sessions, most=max(1, streams))
        self.passes = WhisperPasses(self.config, engine, self.clock)

    def rewind(self) -> None:
        from aula.models.whisper_hearing import HearingOptions, WhisperHearing
        from aula.models.whisper_stream import StreamOptions, WhisperStream

        # Made-up weights are never sure of what they say, and never come to an end.
        options = HearingOptions(self.count, (0.0,), least_logprob=-1e9, most_compression=1e9)
        hearing = WhisperHearing(self.config, self.decoding, self.tokenizer, self.contexts, options)
        language = self.tokenizer.language_token(LANGUAGE)
        self.streams = []
        for _ in range(self.count_of):
            stream = WhisperStream(hearing, self.clock, StreamOptions(language, partials=False))
            stream.feed(self.samples)
            if self.paused:
                stream.pause(60.0)
            self.streams.append(stream)

    def write(self) -> list[int]:
        texts: list[Any] = []
        for stream in self.streams:
            self.passes.begin(stream, stream.committing(), lambda value, _took: texts.append(value))
        while self.passes.advance():
            pass
        return self.tokenizer.encode(texts[0].text)


class Transformers(_Base):
    """`generate` in fp32, with the 30 s that it pads to."""

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__()
        import torch
        import transformers
        from tokenizers import Tokenizer

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins)
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        special = SpecialTokens.of(self.model.config.vocab_size)
        assert special is not None
        self.prompt = special.prompt(special.languages[0] if special.multilingual else None)
        steering = self.model.generation_config
        steering.decoder_start_token_id = special.start
        steering.eos_token_id = steering.pad_token_id = steering.bos_token_id = special.end
        self.about = {"what": f"transformers {transformers.__version__}, torch {torch.__version__}, fp32"}

    def write(self) -> list[int]:
        features = self.extractor(self.samples, sampling_rate=16_000, return_tensors="pt").input_features
        prompt = self.torch.tensor([self.prompt])
        made = self.model.generate(
            features,
            decoder_input_ids=prompt,
            max_new_tokens=self.count,
            min_new_tokens=self.count,
            do_sample=False,
            num_beams=1,
        )[0].tolist()
        tokens = [int(token) for token in made[-self.count :]]
        self.tokenizer.decode(tokens)
        return tokens


class FasterWhisper(_Base):
    """CTranslate2 in int8, greedy, without its fallbacks."""

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__()
        import ctranslate2
        import faster_whisper

        self.model = faster_whisper.WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)
        self.about = {
            "what": f"faster-whisper {faster_whisper.__version__}, ctranslate2 {ctranslate2.__version__}, int8"
        }

    def write(self) -> list[int]:
        segments, _ = self.model.transcribe(
            self.samples,
            language=LANGUAGE,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            suppress_tokens=[],
            suppress_blank=False,
            max_new_tokens=self.count,
            no_speech_threshold=None,
            log_prob_threshold=None,
            compression_ratio_threshold=None,
        )
        return [token for segment in segments for token in segment.tokens]


class Genai(_Base):
    """OpenVINO GenAI's pipeline on what optimum-intel exported, weights in int8."""

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__()
        import openvino_genai

        self.pipeline = openvino_genai.WhisperPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads)
        self.about = {"what": f"openvino-genai {openvino_genai.__version__}, int8 weights"}

    def write(self) -> list[int]:
        config = self.pipeline.get_generation_config()
        config.max_new_tokens = config.min_new_tokens = self.count
        config.language, config.task = f"<|{LANGUAGE}|>", "transcribe"
        config.suppress_tokens, config.begin_suppress_tokens = [], []
        made = self.pipeline.generate(self.samples.tolist(), config)
        # It tells how many tokens it wrote, and their text alone.
        return [0] * int(made.perf_metrics.get_num_generated_tokens())


def make(order: dict[str, Any]) -> Competitor:
    kinds = {
        "aula": Aula,
        "live": Live,
        "transformers": Transformers,
        "faster-whisper": FasterWhisper,
        "openvino-genai": Genai,
    }
    kind = order.pop("kind")
    made: Competitor = kinds[kind](**order)
    return made


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    warnings.simplefilter("ignore")
    answers = private_answers()
    serve(lambda: make(json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
