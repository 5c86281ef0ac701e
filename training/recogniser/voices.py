"""Free synthesisers behind one method each: `speak(text, rng)` gives mono float32 at 16 kHz, a new manner every time.

What a voice is called: `espeak`, `flite:awb`, `rhvoice:alan`, `pico:en-GB`,
`festival:kal_diphone`. `HELD_OUT` are never trained on.
"""

import ctypes
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from training.recogniser import accent, phones

RATE = 16000
HELD_OUT = ("flite:rms", "rhvoice:clb", "festival:cmu_us_slt_arctic_hts")

Sound = NDArray[np.float32]


class Voice(Protocol):
    def speak(self, text: str, rng: random.Random) -> Sound: ...


def voice(name: str) -> Voice:
    family, _, which = name.partition(":")
    if family == "espeak":
        return Espeak()
    programs: dict[str, Callable[[str], Voice]] = {
        "flite": Flite, "rhvoice": RhVoice, "pico": Pico, "festival": Festival,
    }  # fmt: skip
    return programs[family](which)


class EspeakLibrary:
    """eSpeak NG by its C interface, from the package espeakng-loader."""

    _instance: "EspeakLibrary | None" = None

    def __init__(self) -> None:
        import espeakng_loader

        data = Path(espeakng_loader.get_data_path())
        self._c = ctypes.CDLL(espeakng_loader.get_library_path())
        self._c.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.rate = int(self._c.espeak_Initialize(2, 0, bytes(data), 1 << 15))
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG refused its data in {data}: install espeakng-loader again")
        self._got: list[NDArray[np.int16]] = []
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = signature(self._receive)
        self._c.espeak_SetSynthCallback(self._callback)
        self.variants = sorted(path.name for path in (data / "voices" / "!v").iterdir() if path.name not in _HUSHED)

    @classmethod
    def shared(cls) -> "EspeakLibrary":
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def _receive(self, samples: Any, count: int, _events: Any) -> int:
        if count > 0 and samples:
            self._got.append(np.ctypeslib.as_array(samples, (count,)).astype(np.int16))
        return 0

    def choose(self, name: str) -> None:
        if self._c.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {name!r}")

    def phonemes(self, text: str, *, ipa: bool) -> list[list[str]]:
        """Phonemes of each word, by the voice that was chosen last."""
        mode = (ord("_") << 8) | (2 if ipa else 0)
        rest, found = ctypes.c_char_p(text.encode()), []
        while rest.value:
            clause = self._c.espeak_TextToPhonemes(ctypes.byref(rest), 1, mode)
            found += [[sound for sound in word.split("_") if sound] for word in clause.decode().split()]
        return found

    def say(self, text: str, *, wpm: int, pitch: int, spread: int, gap: int) -> Sound:
        """Text, or phonemes in [[ ]], to float32 at 16 kHz."""
        for parameter, value in ((1, wpm), (3, pitch), (4, spread), (7, gap)):
            self._c.espeak_SetParameter(parameter, value, 0)
        self._got = []
        encoded = text.encode()
        self._c.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, 1 | 0x100, None, None)
        if not self._got:
            return np.zeros(0, np.float32)
        return at_16k(np.concatenate(self._got).astype(np.float32) / np.float32(32768), self.rate)


_HUSHED = frozenset({"whisper", "whisperf", "croak", "boris", "Demonic", "Mario", "shelby", "fast_test"})


class Espeak:
    """Eight English accents times some ninety timbres, at any pace and pitch, a third of them as Mandarin speakers."""

    _ACCENTS = ("en-us",) * 5 + ("en",) * 2 + ("en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")

    def __init__(self) -> None:
        self._library = EspeakLibrary.shared()

    def speak(self, text: str, rng: random.Random) -> Sound:
        library = self._library
        library.choose(f"{rng.choice(self._ACCENTS)}+{rng.choice(library.variants)}")
        wpm, gap = rng.gauss(155, 28), rng.randint(3, 25) if rng.random() < 0.2 else 0
        if rng.random() < 0.35:
            words = accent.accented(library.phonemes(text, ipa=False), rng.uniform(*_STRENGTHS), rng, accent.ESPEAK)
            if rng.random() < _HALTING:
                words, wpm, gap = accent.even(words, ","), rng.gauss(130, 15), rng.randint(2, 12)
            text = "[[" + " ".join("".join(word) for word in words) + "]]"
        return library.say(
            text,
            wpm=int(min(205, max(95, wpm))),
            pitch=rng.randint(20, 95),
            spread=rng.randint(20, 80),
            gap=gap,
        )


_STRENGTHS = (0.05, 0.25)
_HALTING = 0.35
"""Of the sentences with an accent: each syllable alike, slower, with pauses between words."""
_ACCENTED = 0.35
"""Of the sentences of Flite and Pico."""


@dataclass(frozen=True)
class Accented:
    """Signs of each word in a synthesiser's notation; `halting` if the words are to be set apart."""

    words: list[list[str]]
    halting: bool


def mandarin(
    text: str, notation: phones.Notation, stressed: Callable[[str], str], rng: random.Random
) -> Accented | None:
    """The text as a Mandarin speaker may say it; None for half the texts, and where the notation lacks a sound."""
    if rng.random() >= _ACCENTED:
        return None
    library = EspeakLibrary.shared()
    library.choose("en-us")
    words = accent.accented(library.phonemes(text, ipa=True), rng.uniform(*_STRENGTHS), rng, accent.IPA)
    halting = rng.random() < _HALTING
    try:
        return Accented(phones.written(accent.even(words, "ˈ") if halting else words, notation, stressed), halting)
    except ValueError:
        return None


class Flite:
    """CMU's small voices, recorded from people; for an accent they get a lexicon of the sentence's words."""

    def __init__(self, which: str) -> None:
        self._which = which
        self._pitch = {"slt": 175, "kal16": 105, "awb": 125, "rms": 100}[which]

    def speak(self, text: str, rng: random.Random) -> Sound:
        with tempfile.NamedTemporaryFile(suffix=".wav") as out, tempfile.NamedTemporaryFile("w") as lexicon:
            held_out = f"flite:{self._which}" in HELD_OUT  # the report's speech stays what it was
            said = None if held_out else mandarin(text, phones.RADIO, phones.stressed_radio, rng)
            options = [f"duration_stretch={rng.uniform(0.85, 1.5) + (0.2 if said and said.halting else 0):.2f}"]
            options += [f"int_f0_target_mean={self._pitch * rng.uniform(0.8, 1.35):.0f}"]
            options = [part for setting in options for part in ("--setf", setting)]
            if said:
                heads, spoken = self._heads(text, said, rng)
                lexicon.writelines(f"{head} : {' '.join(word)}\n" for head, word in zip(heads, said.words, strict=True))
                lexicon.flush()
                options, text = [*options, "-add_lex", lexicon.name], spoken
            _run(["flite", "-voice", self._which, *options, "-t", text, "-o", out.name])
            return _read(out.name)

    @staticmethod
    def _heads(text: str, said: Accented, rng: random.Random) -> tuple[list[str], str]:
        """The words the lexicon explains (made-up ones where eSpeak joins or parts words), and what is to be read."""
        heads = text.lower().split()
        if len(heads) != len(said.words):
            heads = [f"q{chr(97 + place // 26)}{chr(97 + place % 26)}q" for place in range(len(said.words))]
        pauses = ["," if said.halting and rng.random() < 0.25 else "" for _ in heads[:-1]]
        return heads, " ".join(head + pause for head, pause in zip(heads, [*pauses, ""], strict=True))


class RhVoice:
    """Voices of hidden Markov models, trained from CMU's recordings."""

    def __init__(self, which: str) -> None:
        self._which = which

    def speak(self, text: str, rng: random.Random) -> Sound:
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            manner = ["-r", str(rng.randint(65, 115)), "-t", str(rng.randint(75, 140))]
            _run(["RHVoice-test", "-p", self._which, *manner, "-o", out.name], spoken=text)
            return _read(out.name)


class Pico:
    def __init__(self, which: str) -> None:
        self._which = which

    def speak(self, text: str, rng: random.Random) -> Sound:
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            said = mandarin(text, phones.SAMPA, phones.stressed_sampa, rng)
            speed = rng.randint(65, 120) - (10 if said and said.halting else 0)
            spoken = self._tags(said, rng) if said else text
            marked = f'<speed level="{speed}"><pitch level="{rng.randint(75, 150)}">{spoken}</pitch></speed>'
            _run(["pico2wave", "-l", self._which, "-w", out.name, marked])
            return _read(out.name)

    @staticmethod
    def _tags(said: Accented, rng: random.Random) -> str:
        tags = []
        for word in said.words:
            tags.append(f"<phoneme alphabet='xsampa' ph='{''.join(word)}'/>")
            if said.halting and rng.random() < 0.3:
                tags.append(f'<break time="{rng.randint(40, 250)}ms"/>')
        return " ".join(tags)


class Festival:
    def __init__(self, which: str) -> None:
        self._which = which

    def speak(self, text: str, rng: random.Random) -> Sound:
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            pace = f"(Parameter.set 'Duration_Stretch {rng.uniform(0.85, 1.5):.2f})"
            _run(["text2wave", "-eval", f"(voice_{self._which})", "-eval", pace, "-o", out.name], spoken=text)
            return _read(out.name)


def at_16k(sound: Sound, rate: int) -> Sound:
    return sound if rate == RATE else soxr.resample(sound, rate, RATE).astype(np.float32)


def trimmed(sound: Sound, keep: float = 0.12) -> Sound:
    """Without the silence at both ends, but for `keep` seconds; empty where nothing is loud."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * max(np.abs(sound).max(initial=0.0), 1e-3))
    if not len(loud):
        return sound[:0]
    margin = int(keep * RATE)
    return sound[max(0, loud[0] - margin) : loud[-1] + margin]


def _run(command: list[str], spoken: str | None = None) -> None:
    """A synthesiser of the system, or of the folder SYNTHS_FOLDER, which brings its own libraries."""
    carried = os.environ.get("SYNTHS_FOLDER")
    subprocess.run(
        [f"{carried}/bin/{command[0]}", *command[1:]] if carried else command,
        env={**os.environ, "LD_LIBRARY_PATH": f"{carried}/lib"} if carried else None,
        input=spoken and spoken.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )


def _read(path: str) -> Sound:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return at_16k(sound.mean(axis=1), rate)
