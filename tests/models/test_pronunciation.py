from collections.abc import Sequence

import pytest

from aula.models.espeak import phonemes
from aula.models.pronunciation import (
    Phones,
    Pronouncer,
    acoustic_folder,
    cmudict,
    phones_from_ipa,
    with_s,
)

SMALL = {
    "newton": (("N", "UW", "T", "AH", "N"),),
    "box": (("B", "AA", "K", "S"),),
    "foot": (("F", "UH", "T"),),
    "ball": (("B", "AO", "L"),),
    "either": (("IY", "DH", "ER"), ("AY", "DH", "ER")),
}


def differences(first: Sequence[str], second: Sequence[str]) -> int:
    row = list(range(len(second) + 1))
    for place, left in enumerate(first, 1):
        above, row = row, [place]
        for column, right in enumerate(second, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (left != right)))
    return row[-1]


@pytest.fixture
def pronouncer() -> Pronouncer:
    return Pronouncer(SMALL, lambda word: "zˈuː")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("newtons", "N UW T AH N Z"),
        ("newton's", "N UW T AH N Z"),
        ("newtons'", "N UW T AH N Z"),
        ("boxes", "B AA K S IH Z"),
        ("football", "F UH T B AO L"),
        ("foot-ball", "F UH T B AO L"),
        ("zzz", "Z UW"),
    ],
)
def test_words_are_derived_from_known_ones_before_the_rules(pronouncer: Pronouncer, word: str, said: str) -> None:
    assert pronouncer.pronunciations(word) == [tuple(said.split())]


def test_every_way_to_say_a_known_word_is_kept(pronouncer: Pronouncer) -> None:
    assert pronouncer.pronunciations("either") == list(SMALL["either"])
    assert len(pronouncer.pronunciations("eithers")) == 2


@pytest.mark.parametrize("word", ["力", "-", "", "newton-力"])
def test_what_cannot_be_said_has_no_pronunciation(pronouncer: Pronouncer, word: str) -> None:
    assert pronouncer.pronunciations(word) == []


@pytest.mark.parametrize(("phones", "ending"), [("K AE T", "S"), ("D AO G", "Z"), ("HH AO R S", "Z")])
def test_the_ending_follows_the_last_sound(phones: str, ending: str) -> None:
    assert with_s(tuple(phones.split()))[-1] == ending


def test_ipa_is_mapped_longest_match_first() -> None:
    assert phones_from_ipa("tʃˈɜːtʃ fˈaɪɚ") == ("CH", "ER", "CH", "F", "AY", "ER")
    assert phones_from_ipa("dˈʊɹɹɪŋ") == ("D", "UH", "R", "IH", "NG")


def test_rules_agree_with_the_dictionary_on_common_words() -> None:
    """Phone error rate against the nearest of CMUdict's pronunciations, over every tenth of the 3000 commonest words
    of four letters or more (by the general language model). Measured: 3.2 %."""
    import pocketsphinx

    general = pocketsphinx.NGramModel(
        pocketsphinx.Config(), pocketsphinx.LogMath(1.0001), str(acoustic_folder() / "en-us.lm.bin")
    )
    words = [word for word in cmudict() if word.isalpha() and len(word) > 3]
    common = sorted(words, key=lambda word: (-general.prob([word]), word))[:3000:10]
    wrong = total = 0
    for word in common:
        guess = phones_from_ipa(phonemes(word))
        nearest: Phones = min(cmudict()[word], key=lambda way: differences(guess, way))
        wrong += differences(guess, nearest)
        total += len(nearest)
    assert wrong / total < 0.05, wrong / total


def test_real_words_outside_the_dictionary() -> None:
    english = Pronouncer.english()
    assert english.pronunciations("kilojoule") == [("K", "IH", "L", "OW", "JH", "UW", "L")]
    assert english.pronunciations("centripetal") == [("S", "EH", "N", "T", "R", "IH", "P", "AH", "T", "AH", "L")]


def test_only_phones_of_the_acoustic_model_are_made() -> None:
    known = {phone for ways in cmudict().values() for way in ways for phone in way}
    words = ["newtonian", "centripetal", "snellius", "démarche", "naïve", "jiaozi", "xylophones", "bjørn"]
    assert all(set(way) <= known for word in words for way in Pronouncer.english().pronunciations(word))
    assert len(known) == 39
