"""Streams that share passes: what each says does not depend on the others, and who fails or goes harms nobody."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.clock import FakeClock
from aula.core.errors import BackendError
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_hearing import HearingOptions, WhisperHearing
from aula.models.whisper_passes import HANDICAP, Listen, WhisperPasses
from aula.models.whisper_rows import HostEngine
from aula.models.whisper_stream import StreamOptions, WhisperStream
from aula.models.whisper_tokenizer import WhisperTokenizer
from tests.models.whisper_thin_model import sessions_of, sound, thin_checkpoint

ENGLISH = 50_259


class Watched(Session):
    """Passes runs on, costs time of a fake clock, and may be told to fail."""

    def __init__(self, session: Session, clock: FakeClock) -> None:
        super().__init__(session.inputs, session.outputs, session.options)
        self.session, self.clock = session, clock
        self.rows: list[int] = []
        self.fails = False

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._met(tensors, self.session.run)

    def borrow(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._met(tensors, self.session.borrow)

    def _met(self, tensors: Mapping[str, NDArray[Any]], run: Any) -> dict[str, NDArray[Any]]:
        self.clock.advance(1.0)
        self.rows.append(len(next(iter(tensors.values()))))
        if self.fails:
            raise BackendError("the device is gone", next_step="get another")
        made: dict[str, NDArray[Any]] = run(tensors)
        return made


class Model:
    def __init__(self, folder: Path, backend: str) -> None:
        checkpoint = thin_checkpoint(folder)
        config = WhisperConfig.from_checkpoint(checkpoint)
        self.clock = FakeClock()
        self.encoder, self.decoder = (Watched(session, self.clock) for session in sessions_of(checkpoint, backend))
        decoding = WhisperDecoding(config, self.encoder, self.decoder)
        tokenizer = WhisperTokenizer.open(checkpoint, config)
        once = HearingOptions(temperatures=(0.0, 0.4))
        self.hearing = WhisperHearing(config, decoding, tokenizer, Contexts.of(config, 0.5), once)
        self.passes = WhisperPasses(config, HostEngine(config, self.encoder, self.decoder, most=4), self.clock)
        self.told: dict[Any, list[Any]] = {}
        self.took: dict[Any, float] = {}

    def stream(self, **options: Any) -> WhisperStream:
        return WhisperStream(self.hearing, FakeClock(), StreamOptions(**options), self.passes.drop)

    def begin(self, stream: WhisperStream, work: Generator[Any, Any, Any], name: Any = None) -> bool:
        name = stream if name is None else name

        def ended(value: Any, took: float) -> None:
            self.told.setdefault(name, []).append(value)
            self.took[name] = self.took.get(name, 0.0) + took

        return self.passes.begin(stream, work, ended)

    def finish(self) -> None:
        while self.passes.advance():
            pass


@pytest.fixture(params=["openvino", "onnxruntime"])
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    """The same engines for all tests; what is under way is not."""
    made = models[request.param]
    made.passes.close(RuntimeError("the next test begins"))
    made.told, made.took = {}, {}
    made.encoder.fails = made.decoder.fails = False
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: Model(tmp_path_factory.mktemp(name), name) for name in ("openvino", "onnxruntime")}


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_streams_say_together_what_they_say_alone(models: dict[str, Model], data: st.DataObject) -> None:
    """With times or without, of any length, in a language that is told or found; whoever comes when."""
    model = models[data.draw(st.sampled_from(sorted(models)))]
    model.told = {}
    many = data.draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from([1.0, 2.5, 8.0]), st.booleans(), st.booleans()),
            min_size=2,
            max_size=5,
        )
    )
    alone, together = [], []
    for seed, seconds, timestamps, told in many:
        options = {"timestamps": timestamps, "language": ENGLISH if told else None}
        one = model.stream(**options)
        one.feed(sound(seed, seconds))
        alone.append(one.commit())
        together.append(model.stream(**options))
    for number, ((seed, seconds, *_), stream) in enumerate(zip(many, together, strict=True)):
        for piece in np.array_split(sound(seed, seconds), 3):
            model.begin(stream, stream.feeding(piece), number)
            for _ in range(data.draw(st.integers(0, 12))):
                model.passes.advance()
        model.begin(stream, stream.committing(), number)
    model.finish()
    for number, transcript in enumerate(alone):
        *partials, made = model.told[number]
        assert len(partials) == 3
        assert (made.text, made.language, made.segments) == (transcript.text, transcript.language, transcript.segments)
        assert made.confidence == pytest.approx(transcript.confidence, abs=1e-3)
    assert not model.passes.advance()


def test_those_who_write_share_the_decoders_passes(model: Model) -> None:
    streams = [model.stream(language=ENGLISH, partials=False) for _ in range(4)]
    for seed, stream in enumerate(streams):
        stream.feed(sound(seed, 2.0))
    model.decoder.rows.clear()
    began = model.clock.now()
    assert [model.begin(stream, stream.committing()) for stream in streams] == [True, False, False, False]
    model.finish()
    assert max(model.decoder.rows) == 4
    texts = [model.told[stream][0].text for stream in streams]
    assert all(texts)
    assert len(model.decoder.rows) < sum(model.decoder.rows), "fewer passes than alone"
    assert sum(model.took.values()) == pytest.approx(model.clock.now() - began), "every second is somebody's"


def test_whoever_only_brings_sound_does_not_wait_for_those_who_write(model: Model) -> None:
    writing, listening = model.stream(language=ENGLISH, partials=False), model.stream(partials=False)
    writing.feed(sound(1, 2.0))
    model.begin(writing, writing.committing())
    for _ in range(3):
        model.passes.advance()
    model.begin(listening, listening.feeding(sound(2, 1.0)))
    model.passes.advance()
    assert listening in model.told
    assert writing not in model.told
    model.finish()


def test_a_question_goes_before_a_caption_but_not_for_ever(model: Model) -> None:
    ranks = {"caption": 2, **{f"question {number}": 0 for number in range(40)}}
    listened: list[str] = []

    def work(name: str) -> Generator[Any, Any, str]:
        yield Listen(np.zeros((20, 200), np.float32))
        listened.append(name)
        return name

    for name, rank in ranks.items():
        model.passes.begin(name, work(name), lambda _value, _took: None, rank)
    model.finish()
    assert 2 * HANDICAP <= listened.index("caption") < 40
    assert sorted(listened) == sorted(ranks)


def test_a_commit_waits_for_one_pass_of_a_hypothesis_at_most(model: Model) -> None:
    """Wherever the hypothesis is; the text is none the worse for it."""
    alone = model.stream(language=ENGLISH, partials=False)
    alone.feed(sound(1, 2.5))
    wanted = alone.commit().text
    for passes in range(1, 4):
        stream = model.stream(language=ENGLISH)
        model.begin(stream, stream.feeding(sound(1, 2.5)), passes)
        for _ in range(passes):
            model.passes.advance()
        stream.hurry()
        model.begin(stream, stream.committing(), passes)
        before = len(model.encoder.rows) + len(model.decoder.rows)
        while len(model.told.get(passes, ())) < 1:
            model.passes.advance()
        assert len(model.encoder.rows) + len(model.decoder.rows) - before <= 2, "one token, and the commit's encoding"
        model.finish()
        partial, committed = model.told[passes]
        assert partial.text == "", "what was given up is no hypothesis"
        assert committed.text == wanted
    stream = model.stream(language=ENGLISH)
    stream.hurry()
    heard = len(model.encoder.rows)
    stream.feed(sound(1, 2.5))
    assert len(model.encoder.rows) == heard, "none is begun"


def test_a_streams_own_works_keep_their_order(model: Model) -> None:
    stream = model.stream(language=ENGLISH)
    for piece in np.array_split(sound(1, 3.0), 4):
        model.begin(stream, stream.feeding(piece))
    model.begin(stream, stream.committing())
    model.begin(stream, stream.feeding(sound(1, 1.0)))
    model.finish()
    *partials, transcript, refused = model.told[stream]
    assert len(partials) == 4
    assert transcript.text
    assert isinstance(refused, RuntimeError), "nothing comes after the commit"


def test_a_client_that_goes_takes_nobody_along(model: Model) -> None:
    """At any moment of its text."""
    stay = model.stream(language=ENGLISH, partials=False)
    stay.feed(sound(2, 2.0))
    wanted = stay.commit().text
    for moment in range(6):
        model.told = {}
        stays, goes = (model.stream(language=ENGLISH, partials=False) for _ in range(2))
        for stream, seed in ((goes, 1), (stays, 2)):
            stream.feed(sound(seed, 2.0))
            model.begin(stream, stream.committing())
        for _ in range(moment):
            model.passes.advance()
        goes.close()
        model.finish()
        assert list(model.told) == [stays]
        assert model.told[stays][0].text == wanted


def test_a_pass_that_fails_ends_those_who_were_in_it(model: Model) -> None:
    first, second = (model.stream(language=ENGLISH, partials=False) for _ in range(2))
    for seed, stream in enumerate((first, second)):
        stream.feed(sound(seed, 2.0))
    model.begin(first, first.committing())
    while not model.passes._writing:
        model.passes.advance()
    # 1. The encoder fails: only who listened is told.
    model.encoder.fails = True
    model.begin(second, second.committing())
    model.passes.advance()
    assert isinstance(model.told[second][0], BackendError)
    assert first not in model.told
    # 2. A step fails: all who write are told, and the next ones are served.
    model.encoder.fails, model.decoder.fails = False, True
    model.passes.advance()
    assert isinstance(model.told[first][0], BackendError)
    assert not model.passes.advance()
    model.decoder.fails = False
    third = model.stream(language=ENGLISH, partials=False)
    third.feed(sound(1, 2.0))
    model.begin(third, third.committing())
    model.finish()
    assert model.told[third][0].text


def test_more_streams_than_rows_wait_for_one(model: Model) -> None:
    streams = [model.stream(language=ENGLISH, partials=False) for _ in range(6)]
    for seed, stream in enumerate(streams):
        stream.feed(sound(seed % 3, 1.5))
        model.begin(stream, stream.committing())
    model.finish()
    texts = [model.told[stream][0].text for stream in streams]
    assert texts[:3] == texts[3:]
    assert max(model.decoder.rows) == 4


def test_whoever_waits_when_the_model_goes_is_told(model: Model) -> None:
    streams = [model.stream(language=ENGLISH, partials=False) for _ in range(2)]
    for stream in streams:
        stream.feed(sound(1, 1.0))
        model.begin(stream, stream.committing())
    for _ in range(3):
        model.passes.advance()
    model.passes.close(BackendError("closed", next_step="open another"))
    assert [type(model.told[stream][0]) for stream in streams] == [BackendError] * 2
    assert not model.passes.advance()
