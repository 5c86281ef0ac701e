"""What a question asks about, and which sentences define something.

Both sides meet in a key: the stemmed words of the thing defined ("kinet energi" is never shown to anyone). A
passage is indexed under the keys of what it defines, and "what is kinetic energy" looks its key up.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from aula.assistant.languages import STOP_WORDS_EN, sentences, stem, terms

KEY_MARK = "="
"""Stands before a definition's key in the index, so that it never equals a word."""
_LONGEST_SUBJECT = 7


@dataclass(frozen=True, slots=True)
class Question:
    """`terms`: what to look for, without the words that only frame a question, each once.
    `key`: what "what is …" asks the meaning of, "" for any other question."""

    text: str
    language: str
    terms: tuple[str, ...]
    key: str


def parse_question(text: str, language: str) -> Question:
    folded = unicodedata.normalize("NFKC", text).strip().lower().replace("’", "'")
    content, subject = _chinese(folded) if language == "zh" else _english(folded)
    return Question(text, language, tuple(dict.fromkeys(terms(content, language))), _key(subject, language))


_LEAD_EN = re.compile(
    r"^(?:(?:hi|hello|hey|so|um+|uh+|er+|well|ok|okay|please|teacher|sir|miss|and|but|now|sorry|excuse me)\b[\s,]*)+"
)
_FRAME_EN = re.compile(
    r"^(?:(?:can|could|would|will) (?:you|i|we) (?:please )?(?=tell|explain|define|describe|say|remind|know|ask)"
    r"|(?:i|we) (?:want|would like|'d like|need) to (?:know|ask|learn|understand) (?:about )?"
    r"|i (?:do not|don't) (?:know|understand|get) |do you know "
    r"|(?:please )?(?:tell|remind|show) (?:me|us) (?:again )?(?=what|who|which|where|when|why|how))+"
)
_DEFINITION_EN: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"what(?: is|'s| are| was|s)? (?:meant by|the (?:meaning|definition|concept|idea) of) (?P<x>.+)",
        r"what (?:does|do|did) (?P<x>.+?) mean",
        r"what do (?:you|we|they) (?:mean by|call) (?P<x>.+)",
        r"how (?:do|can|could|should|would) (?:i|we|you|one) "
        r"(?:calculate|compute|find|work out|determine|get) (?P<x>.+)",
        r"how (?:is|are) (?P<x>.+?) (?:calculated|computed|worked out|defined)",
        r"(?:what(?: is|'s| are) )?the (?:formula|equation)s? (?:of|for) (?P<x>.+)",
        r"(?:please )?(?:define|explain|describe)(?: to (?:me|us))? (?:what )?"
        r"(?:the (?:term|meaning|concept|idea|definition)(?: of)? )?(?P<x>.+?)(?: (?:is|are|means?))?",
        r"(?:please )?tell (?:me|us)(?: more| something)? (?:about|what) (?P<x>.+?)(?: (?:is|are|means?))?",
        r"(?:the )?(?:definition|meaning) of (?P<x>.+)",
        r"what(?: is|'s| are|s) (?P<x>.+)",
        r"what (?P<x>.+?) (?:is|are|means?)",
    )
)
_FRAME_WORDS_EN_TEXT = """\
tell explain define mean means meaning definition describe please term concept"""
_FRAME_WORDS_EN = frozenset(_FRAME_WORDS_EN_TEXT.split())


def _english(text: str) -> tuple[str, str]:
    text = re.sub(r"[?!.\s]+$", "", _LEAD_EN.sub("", text))
    text = _FRAME_EN.sub("", text).strip()
    text = re.sub(r"\s*,?\s*(?:please|in physics|exactly|then|again|to me|for me)$", "", text)
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _DEFINITION_EN)), None)
    if match:
        return match["x"], match["x"]
    kept = [word for word in text.split() if word.strip(",;:.?!") not in _FRAME_WORDS_EN]
    return " ".join(kept) or text, ""


_FRAME_ZH = re.compile(
    "^(?:请问|请|老师|同学|你好|您好|那么|那|嗯+|啊|呃|我想(?:问一下|问问|问|知道)|想问一下|(?:你|您)?(?:能不能|可不可以|可以|能否|能)|"
    "(?:给我|为我|跟我|帮我|和我)|告诉我|你知道|我不(?:知道|懂|明白)|一下|[，,、\\s])+"
)
_TAIL_ZH = re.compile("(?:[？?。！!，,\\s]|吗|呢|啊|呀|吧)+$")
_DEFINITION_ZH: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        "(?:什么是|什么叫做?|何为|何谓|啥是)(?P<x>.+)",
        "(?:怎么|怎样|如何)(?:计算|求|算)(?:出)?(?P<x>.+)",
        "(?P<x>.+?)(?:该)?(?:怎么|怎样|如何)(?:计算|求|算)",
        "(?P<x>.+?)(?:的(?:定义|含义|意思|概念))?(?:究竟|到底|具体)?(?:是什么(?:意思|东西|概念|量)?|是啥|指的?是?什么|是指什么|什么意思)",
        "(?P<x>.+?)(?:这个词)?的?(?:定义|含义|意思|概念)(?:是什么|是啥)?",
        "(?:解释|介绍|讲|说|讲讲|说说|讲解|说明)(?:一下|下)?(?:什么是)?(?P<x>.+?)",
    )
)
_ASKING_ZH = re.compile(
    "请问|为什么|是什么|什么样|什么时候|什么|怎么样|怎么办|怎么|怎样|如何|为何|多少|多大|多长|多高|多远|多久|哪一?[个些里儿种位年]?|"
    "是谁|谁|是不是|算不算|有没有|能不能|会不会|可不可以|几[个次种节]|吗|呢|的时候|时候|以后|之后|觉得|应该|才能|一块|一下|一共|"
    "哪些|这门课|我们|我|你|它|让|把|往|就|的是|是|的|了"
)


def _chinese(text: str) -> tuple[str, str]:
    text = _TAIL_ZH.sub("", _FRAME_ZH.sub("", text)) or text
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _DEFINITION_ZH)), None)
    if match:
        return match["x"], match["x"]
    return _ASKING_ZH.sub(" ", text).strip() or text, ""


_ARTICLES_ZH = re.compile("^(?:所谓|一个|一种|这个|这种|物体的|我们说的)|[的“”\"'「」《》]$|^[“\"'「《]")


def _key(subject: str, language: str) -> str:
    subject = re.sub(r"\s*\(.*?\)", "", subject)
    if language == "zh":
        return KEY_MARK + core if 0 < len(core := _core(subject)) <= 12 else ""
    words = re.findall(r"[^\W_]+", subject.replace("'s", ""))
    kept = [stem(word) for word in words if word not in STOP_WORDS_EN]
    return KEY_MARK + " ".join(kept) if 0 < len(kept) <= _LONGEST_SUBJECT else ""


def _core(subject: str) -> str:
    subject = re.sub("[\\s“”\"'「」《》]", "", subject)
    return _ARTICLES_ZH.sub("", subject)


def definition_keys(text: str, language: str) -> set[str]:
    """The keys of everything that some sentence of `text` seems to define."""
    found: set[str] = set()
    for sentence in sentences(text, language):
        found |= sentence_keys(sentence, language)
    return found


def sentence_keys(sentence: str, language: str) -> set[str]:
    """The keys of what one sentence seems to define; generous, for a wrong key is never asked for."""
    folded = unicodedata.normalize("NFKC", sentence).lower().replace("’", "'")
    phrases = _defined_chinese(folded) if language == "zh" else _defined_english(folded)
    return {key for phrase in phrases if (key := _key(phrase, language))}


def heading_keys(heading: str, language: str) -> set[str]:
    """The keys of what a heading announces, whole and in its parts ("Distance and displacement")."""
    folded = unicodedata.normalize("NFKC", heading).lower().replace("’", "'")
    pieces = re.split(r",|:|、|：|\band\b|\bvs\.?|与|和", folded)
    return {key for piece in (folded, *pieces) if (key := _key(piece, language))}


_CLAUSE_EN = r"(?:^|[,;:(]\s*|\b(?:that|and|say|words|thus|then|where)\s+|[—–]\s*)"
_BEFORE_EN = re.compile(
    _CLAUSE_EN + r"(?=(?:[\"'“]?(?:the |an? |in \w+, )?[\"'“]?(?P<x>[^\s,;:.()—–][^,;:.()—–]{1,60}?)[\"'”]?"
    r"(?:\s*\([^)]{1,30}\))?,?\s+"
    r"(?:is|are|means?|refers?|describes?|measures?|states?|tells?|says?|occurs?|happens?|consists?|represents?|"
    r"can be (?:defined|described|thought)|may be defined|was defined)\b))"
)
_DASH_EN = re.compile(
    r"(?P<x>[^,;:.()—–]{2,60})(?:\s*[—–]|\s*,)\s*"
    r"(?:which (?:is|are|means)|that is|or\b|(?:is )?the|an?|defined as|meaning)\b"
)
_AFTER_EN = re.compile(
    r"(?:(?:called|known as|termed|named|referred to as|define|defines|defined|call (?:this|it|that|them)|"
    r"by the term|the term|described as|known by the name|is its|are its|"
    r"(?:is|are) (?:a|an|the)?)\s+|[,(]\s*or\s+)[\"'“]?(?:the |an? |this |simply )?[\"'“]?(?P<x>[^,;:.()—–\"”?!]{2,70})"
)


def _defined_english(sentence: str) -> Iterator[str]:
    for match in _BEFORE_EN.finditer(sentence):
        yield match["x"]
    for match in _DASH_EN.finditer(sentence):
        yield from _endings(match["x"].split())
    for match in _AFTER_EN.finditer(sentence):
        yield from _beginnings(match["x"].split())


def _beginnings(words: list[str]) -> Iterator[str]:
    """The phrase up to each little word in it, since a name may hold one ("law of refraction")."""
    for count in range(1, min(len(words), _LONGEST_SUBJECT) + 1):
        if count == len(words) or words[count] in STOP_WORDS_EN:
            yield " ".join(words[:count])


def _endings(words: list[str]) -> Iterator[str]:
    for start in range(max(0, len(words) - _LONGEST_SUBJECT), len(words)):
        if start == 0 or words[start - 1] in STOP_WORDS_EN:
            yield " ".join(words[start:])


_PLAIN_EN = re.compile(
    r"^(?:in \w+, |the |an? |[\"'“]|recall that )*(?P<x>[^,;:.()—–]{2,60}?)[\"'”]?(?:\s*\([^)]{1,30}\))?,?\s+"
    r"(?:(?:is|are) (?:also )?(?:an?|the|any|one|how|what|when|that|those|defined|equal|simply|anything)\b"
    r"|means?\b|refers? to|states?\b|describes?\b|measures?\b|(?:can be|was|may be) defined)"
)
_PLAIN_ZH = re.compile(
    "^(?:所谓)?[“\"'「《]?(?P<x>[^，,；;：:。—]{1,16}?)[”\"'」》]?[，,]?(?:就?是指?|指|定义为|表示|描述|等于)"
)
_NAMING = re.compile(r"\b(?:called|known as|termed|defined as|defined to be)\b|叫做?|叫作|称为|称作|定义为")


def defines_plainly(sentence: str, key: str, language: str) -> float:
    """How plainly `sentence` defines `key`: 1 "X is the …" or "… is called X", 0.5 otherwise, 0 not at all."""
    if not key or key not in sentence_keys(sentence, language):
        return 0.0
    folded = unicodedata.normalize("NFKC", sentence).lower().replace("’", "'")
    match = (_PLAIN_ZH if language == "zh" else _PLAIN_EN).match(folded)
    if match and _key(match["x"], language) == key:
        return 1.0
    return 0.8 if _NAMING.search(folded) else 0.5


_BEFORE_ZH = re.compile(
    "(?:^|[，,；;：:—])(?=(?:所谓)?[“\"'「《]?(?P<x>[^，,；;：:。—]{1,16}?)[”\"'」》]?[，,]?"
    "(?:是|就是|指|是指|即|的定义|表示|等于|描述|反映|又称|也叫))"
)
_AFTER_ZH = re.compile(
    "(?:叫做?|叫作|称为|称作|称之为|被称为|简称为?|又称|也叫|定义为|这就是|即|就是)[“\"'「《]?(?P<x>[^，,；;：:。—”\"'」》]{1,14})"
)


def _defined_chinese(sentence: str) -> Iterator[str]:
    for pattern in (_BEFORE_ZH, _AFTER_ZH):
        for match in pattern.finditer(sentence):
            yield match["x"]
