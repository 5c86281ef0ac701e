"""Written English to the letters that are said: the recogniser knows a to z, the apostrophe and the space.

The same function prepares the training text, the references of the report and the words of a course, so that nothing
is compared that was spelt in two ways.
"""

import re
import unicodedata

ALPHABET = "abcdefghijklmnopqrstuvwxyz' "

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])(\d[\d,]*)(?:\.(\d+))?(st|nd|rd|th)?(?![\w])")
_TITLES = {"mr": "mister", "mrs": "missis", "dr": "doctor", "st": "saint", "vs": "versus", "etc": "et cetera"}
_TITLE = re.compile(r"\b(mr|mrs|dr|st|vs|etc)\.", re.IGNORECASE)
_SIGNS = {
    "%": " percent ",
    "&": " and ",
    "+": " plus ",
    "=": " equals ",
    "$": " dollars ",
    "@": " at ",
    "°": " degrees ",
}


def said(text: str) -> str | None:
    """The text in the recogniser's alphabet, or None where it holds something that this module cannot read aloud."""
    text = unicodedata.normalize("NFKD", text).replace("\u2019", "'").replace("\u2018", "'")
    text = _TITLE.sub(lambda match: _TITLES[match[1].lower()], text)
    text = _NUMBER.sub(_read, text)
    for sign, words in _SIGNS.items():
        text = text.replace(sign, words)
    text = "".join(character for character in text.lower() if not unicodedata.combining(character))
    text = re.sub(r"[^\w\s']", " ", text).replace("_", " ")
    text = re.sub(r"(?<!\w)'+|'+(?!\w)", " ", text)
    text = " ".join(text.split())
    return text if text and all(character in ALPHABET for character in text) else None


def number(value: int) -> str:
    """0 to 999 999 999 999 in words: 1205 is "one thousand two hundred and five"."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (f" {_ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        rest = f" and {number(value % 100)}" if value % 100 else ""
        return f"{_ONES[value // 100]} hundred{rest}"
    places: tuple[tuple[int, str], ...] = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
    for unit, name in places:
        if value >= unit:
            above, below = divmod(value, unit)
            joint = " and " if 0 < below < 100 else " "
            return f"{number(above)} {name}" + (joint + number(below) if below else "")
    raise AssertionError(value)


def ordinal(value: int) -> str:
    """1 is "first", 21 "twenty first"."""
    *front, last = number(value).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return " ".join([*front, last])


def year(value: int) -> str:
    """1907 is "nineteen oh seven"."""
    century, rest = divmod(value, 100)
    if value % 1000 < 10:
        return number(value)
    tail = "hundred" if rest == 0 else f"oh {_ONES[rest]}" if rest < 10 else number(rest)
    return f"{number(century)} {tail}"


def _read(match: re.Match[str]) -> str:
    whole, decimals, suffix = match[1].replace(",", ""), match[2], match[3]
    if len(whole) > 12:
        return " ".join(_ONES[int(digit)] for digit in whole)
    value = int(whole)
    if suffix:
        return f" {ordinal(value)} "
    if decimals:
        return f" {number(value)} point {' '.join(_ONES[int(digit)] for digit in decimals)} "
    if len(whole) == 4 and "," not in match[1] and 1100 <= value < 2100:
        return f" {year(value)} "
    return f" {number(value)} "
