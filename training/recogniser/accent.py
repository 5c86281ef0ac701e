"""A Mandarin speaker's English, as rules on phonemes: what the classrooms this is made for sound like.

The substitutions are those that the phonetics of second languages describes for Mandarin (th as s or z, v as w, short i
as long, final n and ng confused, final stops dropped or followed by a vowel). They are applied at random, a few in a
sentence, in whichever notation the synthesiser reads.
"""

import random
from collections.abc import Sequence

Words = Sequence[Sequence[str]]
"""Phonemes of each word; a phoneme may carry stress marks in front."""

_IN_IPA: dict[str, str] = {
    "θ": "s s t f", "ð": "z d d", "v": "w f", "w": "v", "ɪ": "i", "iː": "ɪ", "i": "ɪ", "æ": "ɛ ɛ ɑ", "ɛ": "æ eɪ",
    "ʌ": "ɑ ɑ", "ʊ": "u", "z": "s s ʒ", "ʒ": "ʃ ɹ", "ɹ": "l w", "l": "ɹ n", "n": "l ŋ", "ŋ": "n", "tʃ": "ʃ", "dʒ": "ʒ",
    "ə": "ɑ ʌ", "ɚ": "ə", "oʊ": "ɔ", "eɪ": "ɛ", "aɪ": "ɑ", "aʊ": "ɑ",
}  # fmt: skip
_TO_ESPEAK = {
    "θ": "T", "ð": "D", "ɪ": "I", "iː": "i:", "æ": "a", "ɛ": "E", "ʌ": "V", "ʊ": "U", "ʒ": "Z", "ɹ": "r", "ŋ": "N",
    "tʃ": "tS", "dʒ": "dZ", "ə": "@", "ɚ": "3", "oʊ": "oU", "eɪ": "eI", "aɪ": "aI", "aʊ": "aU", "ɑ": "A:", "ɔ": "O:",
    "ʃ": "S", "u": "u:",
}  # fmt: skip
IPA = {sound: others.split() for sound, others in _IN_IPA.items()}
ESPEAK = {
    _TO_ESPEAK.get(sound, sound): [_TO_ESPEAK.get(other, other) for other in others] for sound, others in IPA.items()
}
_STOPS = frozenset(["p", "b", "t", "d", "k", "ɡ", "g"])
_STRESS = "'ˈ,ˌ"
_VOWELS = frozenset("aɑæɐɛɜəɚɪiᵻʌʊuoɔeAEIOUV@30")
"""First letters of vowels, in IPA and in eSpeak's notation."""


def parted(marked: str) -> tuple[str, str]:
    """A phoneme's stress marks and its sound."""
    sound = marked.lstrip(_STRESS)
    return marked[: len(marked) - len(sound)], sound


def accented(words: Words, strength: float, rng: random.Random, table: dict[str, list[str]]) -> list[list[str]]:
    """The same words with each phoneme replaced with the probability `strength` where the table knows how."""
    schwa = "ə" if table is IPA else "@"
    spoken: list[list[str]] = []
    for word in words:
        out: list[str] = []
        for place, marked in enumerate(word):
            stress, sound = parted(marked)
            last = place == len(word) - 1 and len(word) > 2
            if last and sound in _STOPS and rng.random() < strength:
                if rng.random() < 0.5:
                    out += [marked, schwa]
                continue
            if sound in table and rng.random() < strength:
                sound = rng.choice(table[sound])
            out.append(stress + sound)
        spoken.append(out)
    return spoken


def even(words: Words, mark: str) -> list[list[str]]:
    """The same words with the stress `mark` before every vowel: Mandarin gives each syllable its time."""
    return [
        [mark + sound if sound[:1] in _VOWELS else sound for sound in (parted(marked)[1] for marked in word)]
        for word in words
    ]
