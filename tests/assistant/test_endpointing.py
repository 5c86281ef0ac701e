"""The state machine by hand, by property, and on real speech."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.assistant.endpointing import (
    CHUNK_MS,
    Endpointer,
    EndpointingOptions,
    SpeechEvent,
    SpeechStarted,
    SpeechState,
    SpeechStopped,
)
from aula.audio.decoding import read_audio
from aula.core.errors import ModelNotFoundError
from aula.core.settings import Settings
from aula.core.types import SPEECH_RATE, Float32
from aula.models import silero

probabilities = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.34, 0.35, 0.4, 0.49, 0.5, 1.0])), max_size=120
)
options = st.builds(
    EndpointingOptions,
    start=st.floats(0.4, 1.0),
    end=st.floats(0.05, 0.39),
    start_ms=st.integers(1, 300),
    end_ms=st.integers(1, 700),
)


def run(given_options: EndpointingOptions, values: list[float], *, finish: bool = True) -> list[SpeechEvent]:
    endpointer = Endpointer(given_options)
    events = [event for value in values if (event := endpointer.feed(value))]
    last = endpointer.finish() if finish else None
    return events + ([last] if last else [])


def test_a_word_between_silences() -> None:
    chosen = EndpointingOptions(start_ms=64, end_ms=96)
    endpointer = Endpointer(chosen)
    seen = []
    for value in [0.0, 0.6, 0.9, 0.4, 0.1, 0.4, 0.1, 0.1, 0.1, 0.0]:
        event = endpointer.feed(value)
        seen.append((endpointer.state.name, event))
    stop = SpeechStopped(at_ms=6 * CHUNK_MS, speech_ms=5 * CHUNK_MS)
    assert seen == [
        ("SILENCE", None),
        ("STARTING", None),
        ("SPEECH", SpeechStarted(at_ms=CHUNK_MS)),
        ("SPEECH", None),
        ("ENDING", None),
        ("SPEECH", None),
        ("ENDING", None),
        ("ENDING", None),
        ("SILENCE", stop),
        ("SILENCE", None),
    ]
    assert endpointer.finish() is None


def test_thresholds_belong_to_speech() -> None:
    chosen = EndpointingOptions(start=0.5, end=0.35, start_ms=32, end_ms=32)
    assert run(chosen, [0.49], finish=False) == []
    assert run(chosen, [0.5, 0.35], finish=False) == [SpeechStarted(0)]
    assert run(chosen, [0.5, 0.34], finish=False) == [SpeechStarted(0), SpeechStopped(32, 32)]


def test_a_click_is_no_start() -> None:
    assert run(EndpointingOptions(start_ms=64), [1.0, 0.0] * 20) == []


def test_the_end_of_the_sound_ends_speech() -> None:
    chosen = EndpointingOptions()
    assert run(chosen, [1.0] * 4) == [SpeechStarted(0), SpeechStopped(128, 128)]
    assert run(chosen, [1.0] * 4 + [0.0] * 3) == [SpeechStarted(0), SpeechStopped(128, 128)]
    assert run(chosen, [1.0]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01])
def test_illegal_probabilities_are_named_and_change_nothing(value: float) -> None:
    endpointer = Endpointer()
    endpointer.feed(1.0)
    with pytest.raises(ValueError, match=str(value)):
        endpointer.feed(value)
    assert (endpointer.state, endpointer.now_ms) == (SpeechState.STARTING, CHUNK_MS)


@pytest.mark.parametrize(
    "values",
    [
        {"start": 0.3},
        {"start": 1.5},
        {"end": 0.0},
        {"end": float("nan")},
        {"start_ms": 0},
        {"end_ms": -1},
        {"lead_ms": -1},
    ],
)
def test_contradictory_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        EndpointingOptions(**values)  # type: ignore[arg-type]


def test_options_come_from_settings() -> None:
    assert EndpointingOptions.from_settings(Settings()) == EndpointingOptions()
    changed = Settings().replaced(vad__end_ms=1_000, vad__start=0.7)
    assert EndpointingOptions.from_settings(changed) == EndpointingOptions(start=0.7, end_ms=1_000)


@settings(deadline=None)  # a busy machine is no failure
@given(options, probabilities)
def test_events_alternate_and_times_rise(chosen: EndpointingOptions, values: list[float]) -> None:
    events = run(chosen, values)
    assert len(events) % 2 == 0
    assert all(isinstance(event, SpeechStarted) for event in events[::2])
    assert all(isinstance(event, SpeechStopped) for event in events[1::2])
    assert all(earlier.at_ms < later.at_ms for earlier, later in pairwise(events))
    assert all(0 <= event.at_ms <= len(values) * CHUNK_MS for event in events)


@settings(deadline=None)  # a busy machine is no failure
@given(options, probabilities)
def test_every_start_and_stop_has_its_reason(chosen: EndpointingOptions, values: list[float]) -> None:
    """What an event claims is checked against the probabilities themselves."""
    events = run(chosen, values, finish=False)
    start_chunks = -(-chosen.start_ms // CHUNK_MS)
    end_chunks = -(-chosen.end_ms // CHUNK_MS)
    for event in events:
        first = event.at_ms // CHUNK_MS
        if isinstance(event, SpeechStarted):
            assert min(values[first : first + start_chunks]) >= chosen.start
            assert len(values[first : first + start_chunks]) == start_chunks
        else:
            assert max(values[first : first + end_chunks]) < chosen.end
            assert len(values[first : first + end_chunks]) == end_chunks
    for start, stop in zip(events[::2], events[1::2], strict=False):
        assert isinstance(stop, SpeechStopped)
        assert stop.speech_ms == stop.at_ms - start.at_ms >= chosen.start_ms


@settings(deadline=None)  # a busy machine is no failure
@given(options, probabilities)
def test_long_runs_are_never_missed(chosen: EndpointingOptions, values: list[float]) -> None:
    start_chunks = -(-chosen.start_ms // CHUNK_MS)
    end_chunks = -(-chosen.end_ms // CHUNK_MS)
    values = [*values, *[0.0] * end_chunks, *[1.0] * start_chunks, *[0.0] * end_chunks]
    events = run(chosen, values, finish=False)
    # The quiet run makes sure that the last start is new.
    assert events[-2].at_ms <= (len(values) - start_chunks - end_chunks) * CHUNK_MS
    assert events[-1].at_ms == (len(values) - end_chunks) * CHUNK_MS


@settings(deadline=None)  # a busy machine is no failure
@given(options, probabilities)
def test_a_replay_is_equal(chosen: EndpointingOptions, values: list[float]) -> None:
    endpointer = Endpointer(chosen)
    first = [endpointer.feed(value) for value in values]
    endpointer.reset()
    assert [endpointer.feed(value) for value in values] == first


def detect(samples: Float32) -> list[SpeechEvent]:
    assert silero.CHUNK_MS == CHUNK_MS
    try:
        detector = silero.SpeechProbability()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    with detector:
        return run(EndpointingOptions(), detector.feed(samples))


@pytest.mark.shared_data
def test_real_speech_starts_and_stops(shared_data: Path) -> None:
    recording = read_audio(shared_data / "speech_en_misc" / "silero_vad_test_60s.wav", 61)
    events = detect(recording.samples)
    stops = [event for event in events if isinstance(event, SpeechStopped)]
    assert 3 <= len(stops) <= 40
    spoken = sum(stop.speech_ms for stop in stops) / 1_000
    assert 40 < spoken < 60
    # Sound that was called silence is quiet, compared with what was called speech.
    speech = np.zeros(len(recording.samples), bool)
    for start, stop in zip(events[::2], events[1::2], strict=True):
        speech[start.at_ms * 16 : stop.at_ms * 16] = True
    power = recording.samples.astype(np.float64) ** 2
    assert power[speech].mean() > 5 * power[~speech].mean()


@pytest.mark.shared_data
def test_short_questions_are_found_whole(shared_data: Path) -> None:
    events = detect(read_audio(shared_data / "speech_en_misc" / "jfk_16k.wav", 30).samples)
    assert isinstance(events[0], SpeechStarted)
    assert events[0].at_ms < 600
    assert events[-1].at_ms > 9_500


def test_silence_and_noise_start_nothing() -> None:
    assert detect(np.zeros(SPEECH_RATE * 5, np.float32)) == []
    white = np.random.default_rng(3).normal(0, 0.1, SPEECH_RATE * 5).astype(np.float32)  # -20 dBFS
    assert detect(white) == []


def test_a_pause_lasts_from_the_last_speech_until_it_goes_on() -> None:
    endpointer = Endpointer(EndpointingOptions(start_ms=64, end_ms=96))
    paused = []
    for probability in (0.0, 0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9):
        endpointer.feed(probability)
        paused.append(endpointer.paused_ms)
    assert paused == [0, 0, 0, 32, 64, 0, 32, 64, 96, 128, 160, 0, 0]
