import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aula.assistant.speaking import SpeechCache, SpokenAudio, speech_key
from aula.core.settings import Settings
from aula.core.types import Int16

CHUNKS = (np.arange(5, dtype=np.int16), np.zeros(3, np.int16), np.array([-32768, 32767], np.int16))


class Voice:
    """An async iterator of chunks that knows whether it was closed, and may fail at its end."""

    def __init__(self, error: Exception | None = None) -> None:
        self._waiting = list(CHUNKS)
        self._error = error
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Int16]:
        return self

    async def __anext__(self) -> Int16:
        if self._waiting:
            return self._waiting.pop(0)
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def cache(tmp_path: Path) -> SpeechCache:
    return SpeechCache(tmp_path / "speech", 100_000)


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "speech").glob("*"))


def one_second(value: int = 1) -> SpokenAudio:
    return SpokenAudio(22_050, (np.full(500, value, np.int16),))


def stalest_first(cache: SpeechCache, tmp_path: Path, *keys: str) -> None:
    for place, key in enumerate(keys):
        os.utime(tmp_path / "speech" / f"{key}.speech", ns=(place, place))


async def test_what_was_spoken_to_its_end_comes_back_chunk_by_chunk(cache: SpeechCache) -> None:
    assert cache.cached("key") is None
    heard = [chunk async for chunk in cache.recorded("key", Voice(), 22_050)]
    assert [chunk.tolist() for chunk in heard] == [chunk.tolist() for chunk in CHUNKS]
    found = cache.cached("key")
    assert found is not None
    assert found.rate == 22_050
    assert [chunk.tolist() for chunk in found.chunks] == [chunk.tolist() for chunk in CHUNKS]
    assert {chunk.dtype for chunk in found.chunks} == {np.dtype(np.int16)}
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.entries) == (1, 1, 1)
    assert statistics.bytes > 20


async def test_an_utterance_that_was_cut_short_is_not_kept(cache: SpeechCache) -> None:
    voice = Voice()
    recorded = cache.recorded("key", voice, 22_050)
    await anext(recorded)
    await recorded.aclose()  # type: ignore[attr-defined]
    assert voice.closed
    assert cache.cached("key") is None


async def test_a_voice_that_fails_is_not_kept_and_its_error_comes_through(cache: SpeechCache) -> None:
    voice = Voice(ValueError("hoarse"))
    with pytest.raises(ValueError, match="hoarse"):
        _ = [chunk async for chunk in cache.recorded("key", voice, 22_050)]
    assert voice.closed
    assert cache.cached("key") is None


async def test_a_limit_of_zero_turns_it_off(tmp_path: Path) -> None:
    off = SpeechCache(tmp_path / "speech", 0)
    assert len([chunk async for chunk in off.recorded("key", Voice(), 22_050)]) == len(CHUNKS)
    assert off.cached("key") is None
    assert entries(tmp_path) == []
    assert off.statistics().misses == 0


@pytest.mark.parametrize("damage", [b"", b"x", b"aula speech 1\n", None])
def test_damaged_entries_are_removed(cache: SpeechCache, tmp_path: Path, damage: bytes | None) -> None:
    cache.keep("key", one_second())
    path = entries(tmp_path)[0]
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    path.write_bytes(bytes(raw) if damage is None else damage)
    assert cache.cached("key") is None
    assert entries(tmp_path) == []
    cache.keep("key", one_second())
    assert cache.cached("key") is not None


def test_what_was_not_heard_for_longest_goes_first(tmp_path: Path) -> None:
    cache = SpeechCache(tmp_path / "speech", 2500)
    cache.keep("first", one_second())
    cache.keep("second", one_second())
    stalest_first(cache, tmp_path, "first", "second")
    assert cache.cached("first") is not None
    cache.keep("third", one_second())
    assert cache.cached("second") is None
    assert cache.cached("first") is not None
    assert cache.statistics().bytes <= 2500


def test_an_utterance_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = SpeechCache(tmp_path / "speech", 500)
    cache.keep("key", one_second())
    assert entries(tmp_path) == []


async def test_a_disk_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "speech").write_text("not a folder")
    cache = SpeechCache(tmp_path / "speech", 1000)
    assert len([chunk async for chunk in cache.recorded("key", Voice(), 22_050)]) == len(CHUNKS)
    assert cache.cached("key") is None
    assert cache.statistics().entries == 0


def test_several_caches_on_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    caches = [SpeechCache(tmp_path / "speech", 4000) for _ in range(4)]

    def use(number: int) -> None:
        cache = caches[number % 4]
        key = f"key{number % 7}"
        cache.keep(key, one_second(number % 7))
        found = cache.cached(key)
        assert found is None or set(found.chunks[0]) == {number % 7}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(80)))
    assert all(path.suffix == ".speech" for path in entries(tmp_path))
    assert caches[0].statistics().bytes <= 4000


def test_the_key_holds_all_that_changes_the_sound() -> None:
    usual = speech_key("A force.", "en", "en-us", words_per_minute=165)
    assert usual == speech_key(" A force. ", "en", "en-us", words_per_minute=165)
    others = {
        speech_key("A force!", "en", "en-us", words_per_minute=165),
        speech_key("A force.", "zh", "en-us", words_per_minute=165),
        speech_key("A force.", "en", "en-gb", words_per_minute=165),
        speech_key("A force.", "en", "en-us", words_per_minute=120),
        speech_key("A force.", "en", "en-us"),
    }
    assert len(others - {usual}) == 5
    assert speech_key("\ud800", "en", "v") != speech_key("caf\u00e9", "en", "v") == speech_key("cafe\u0301", "en", "v")


def test_settings_choose_folder_and_size(tmp_path: Path) -> None:
    SpeechCache.from_settings(Settings({"home": str(tmp_path)})).keep("key", one_second())
    assert len(list((tmp_path / "cache" / "speech").iterdir())) == 1
