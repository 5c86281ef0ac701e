"""Phonemes in IPA, as eSpeak NG gives them, in the notations that Flite and Pico read."""

from collections.abc import Callable

from training.recogniser.accent import Words, parted

_AS_WRITTEN = "p b t d k f v s z m n l w"
_OTHERS = r"""
ɡ|g|g  g|g|g  h|hh|h  θ|th|T  ð|dh|D  ʃ|sh|S  ʒ|zh|Z  tʃ|ch|t_S  dʒ|jh|d_Z  ŋ|ng|N  ɹ|r|r\\  j|y|j  ɾ|dx|d  ʔ|t|t
ɪ|ih|I  ᵻ|ih|I  iː|iy|i:  i|iy|i:  ɛ|eh|E  eɪ|ey|e_I  æ|ae|{  ɑː|aa|A:  ɑ|aa|A:  ɔː|ao|O:  ɔ|ao|O:  oʊ|ow|o_U
ʊ|uh|U  uː|uw|u:  u|uw|u:  ʌ|ah|V  ə|ax|@  ɐ|ax|@  ɚ|er|@`  ɜː|er|3:  aɪ|ay|a_I  aʊ|aw|a_U  ɔɪ|oy|O_I
ɔːɹ|ao+r|O:+r\\  oːɹ|ao+r|O:+r\\  ɑːɹ|aa+r|A:+r\\  ɛɹ|eh+r|E+r\\  ɪɹ|ih+r|I+r\\  ʊɹ|uh+r|U+r\\
aɪɚ|ay+er|a_I+@`  aɪə|ay+ax|a_I+@  iə|iy+ax|i:+@  əl|ax+l|@+l  n̩|ax+n|@+n
"""
_ROWS = [[sound] * 3 for sound in _AS_WRITTEN.split()] + [entry.split("|") for entry in _OTHERS.split()]

Notation = dict[str, list[str]]
RADIO: Notation = {
    sound: [phone + "0" if phone[0] in "aeiou" else phone for phone in radio.split("+")] for sound, radio, _ in _ROWS
}
"""Phones of CMU's radio corpus, as in Flite's lexicon: a vowel without a digit would be no syllable there."""
SAMPA: Notation = {sound: sampa.split("+") for sound, _, sampa in _ROWS}
"""X-SAMPA as both English voices of Pico read it. They leave out in silence what they do not know: aI, tS, or an r
with one backslash, which takes the next letter with it."""


def written(words: Words, notation: Notation, stressed: Callable[[str], str]) -> list[list[str]]:
    """The same words; `stressed` gives the sign of a vowel its stress.

    Raises ValueError for a sound that the notation has no sign for.
    """
    found: list[list[str]] = []
    for word in words:
        signs: list[str] = []
        for marked in word:
            stress, sound = parted(marked)
            if sound not in notation:
                raise ValueError(f"no sign for {sound!r} of {''.join(word)!r}: add it to phones.py")
            first, *rest = notation[sound]
            signs += [stressed(first) if stress else first, *rest]
        if signs:
            found.append(signs)
    if not found:
        raise ValueError("nothing to say: the text has no words")
    return found


def stressed_radio(sign: str) -> str:
    return sign.replace("0", "1")


def stressed_sampa(sign: str) -> str:
    return '"' + sign
