"""How English words sound, in the 39 phones of CMUdict, which PocketSphinx's acoustic model was trained with.

A word that CMUdict lacks is made from words it has (plurals, possessives, compounds); what is left, such as names, is
read by eSpeak NG's rules and its phonemes mapped. Over 300 common words the latter differ from CMUdict in three phones
of a hundred (see the test), most of them reduced vowels, where dictionaries differ too; rare words fare worse.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from aula.core.errors import ModelNotFoundError

Phones = tuple[str, ...]

_IPA: dict[str, str] = {
    # vowels; the longest match wins
    "aɪɚ": "AY ER", "aʊɚ": "AW ER", "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "ɔɪ": "OY",
    "ɪɹ": "IH R", "iɹ": "IH R", "ʊɹ": "UH R", "ɛɹ": "EH R", "eɹ": "EH R", "iə": "IY AH", "iəɹ": "IH R", "iːɹ": "IH R",
    "ɑːɹ": "AA R", "ɔːɹ": "AO R", "oːɹ": "AO R", "ɜːɹ": "ER", "əɹ": "ER", "ɚɹ": "ER",
    "iː": "IY", "uː": "UW", "ɑː": "AA", "ɔː": "AO", "ɜː": "ER", "oː": "AO",
    "i": "IY", "ɪ": "IH", "ᵻ": "IH", "ɨ": "IH", "u": "UW", "ʊ": "UH", "ɛ": "EH", "e": "EH", "æ": "AE", "a": "AE",
    "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ɑ": "AA", "ɒ": "AA", "ɔ": "AO", "o": "OW", "ɚ": "ER", "ɝ": "ER", "y": "UW",
    # consonants
    "tʃ": "CH", "dʒ": "JH", "n̩": "AH N", "m̩": "AH M", "l̩": "AH L", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K",
    "ɡ": "G", "g": "G", "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH",
    "m": "M", "n": "N", "ŋ": "NG", "l": "L", "ɹ": "R", "r": "R", "w": "W", "ʍ": "W", "j": "Y", "x": "K", "ç": "HH",
    "ɾ": "T", "ʔ": "T",
}  # fmt: skip
_IPA_PIECE = re.compile("|".join(sorted(map(re.escape, _IPA), key=len, reverse=True)))

_EXCEPTIONS: dict[str, tuple[Phones, ...]] = {
    # read wrongly by the rules, and too common in school physics to leave to them
    "centripetal": (("S", "EH", "N", "T", "R", "IH", "P", "AH", "T", "AH", "L"),),
}

_HISSING = frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
_VOICELESS = frozenset({"P", "T", "K", "F", "TH"})
_LATIN_WORD = re.compile("(?=.*[a-z])[a-z\u00df-\u024f']+")
_LEAST_PART = 3
"""Letters that a part of a compound must have, so that "carpet" is not "car" and "pet" by way of "a"s and "in"s."""


class Pronouncer:
    """Pronunciations of lower-case words, from a dictionary, rules on it, and `spell` (text to IPA) for the rest."""

    def __init__(self, dictionary: Mapping[str, Sequence[Phones]], spell: Callable[[str], str]) -> None:
        self._dictionary = dictionary
        self._spell = spell

    @classmethod
    def english(cls) -> "Pronouncer":
        """With CMUdict and eSpeak NG. Raises ModelNotFoundError or BackendError where either cannot be had."""
        from aula.models.espeak import phonemes

        return cls({**_EXCEPTIONS, **cmudict()}, phonemes)

    def pronunciations(self, word: str) -> list[Phones]:
        """Every way to say the word, best first; empty where it cannot be said."""
        found = self._derived(word)
        if found is None:
            if not _LATIN_WORD.fullmatch(word):
                return []
            phones = phones_from_ipa(self._spell(word))
            found = [phones] if phones else []
        return list(dict.fromkeys(found))

    def _derived(self, word: str) -> list[Phones] | None:
        if word in self._dictionary:
            return list(self._dictionary[word])
        if "-" in word:
            parts = [self.pronunciations(part) for part in word.split("-") if part]
            return [sum((part[0] for part in parts), ())] if parts and all(parts) else None
        return self._inflected(word) or self._compound(word)

    def _inflected(self, word: str) -> list[Phones] | None:
        if word.endswith("s'"):
            return self.pronunciations(word[:-1])
        for ending in ("'s", "es", "s"):
            base = word.removesuffix(ending)
            if base != word and base in self._dictionary:
                return [with_s(phones) for phones in self._dictionary[base]]
        return None

    def _compound(self, word: str) -> list[Phones] | None:
        for cut in range(len(word) - _LEAST_PART, _LEAST_PART - 1, -1):
            first, second = self._dictionary.get(word[:cut]), self._dictionary.get(word[cut:])
            if first and second and len(first[0]) > 1 and len(second[0]) > 1:
                return [first[0] + second[0]]
        return None


def with_s(phones: Phones) -> Phones:
    """The plural, possessive or third person of a word."""
    if phones[-1] in _HISSING:
        return (*phones, "IH", "Z")
    return (*phones, "S" if phones[-1] in _VOICELESS else "Z")


def phones_from_ipa(ipa: str) -> Phones:
    """American English IPA, as eSpeak NG writes it, in CMUdict's phones. Stress and foreign signs are left out."""
    plain = re.sub(r"\([a-z-]+\)|[ˈˌ]", "", ipa)
    phones = [phone for piece in _IPA_PIECE.findall(plain) for phone in _IPA[piece].split()]
    # "ɹ" may close one syllable and open the next in IPA; CMUdict writes it once.
    return tuple(phone for place, phone in enumerate(phones) if phone != "R" or phones[place - 1 : place] != ["R"])


@cache
def cmudict() -> Mapping[str, tuple[Phones, ...]]:
    """The dictionary inside the pocketsphinx wheel, lower case, without stress marks: about 127,000 words."""
    return read_dictionary(acoustic_folder() / "cmudict-en-us.dict")


def acoustic_folder() -> Path:
    """Where pocketsphinx keeps its American English models. Raises ModelNotFoundError."""
    try:
        import pocketsphinx
    except ImportError as error:
        raise ModelNotFoundError(
            "the package that carries the recogniser is not installed", next_step="pip install pocketsphinx"
        ) from error
    folder = Path(pocketsphinx.get_model_path("en-us"))
    if not (folder / "cmudict-en-us.dict").is_file():
        raise ModelNotFoundError(
            f"pocketsphinx has no English models in {folder}", next_step="install it again: pip install pocketsphinx"
        )
    return folder


def read_dictionary(path: Path) -> dict[str, tuple[Phones, ...]]:
    """Lines "word PH ON ES" and "word(2) PH ON ES"."""
    entries: defaultdict[str, list[Phones]] = defaultdict(list)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            word, *phones = line.split()
            entries[word.partition("(")[0] or word].append(tuple(phones))
    return {word: tuple(ways) for word, ways in entries.items()}
