"""Extractive answers: the course's own sentences with their citations, or a plain refusal."""

from collections.abc import Sequence

from aula.assistant.answerability import answerability
from aula.assistant.course import Course
from aula.assistant.questions import parse_question
from aula.assistant.retrieval import Hit
from aula.assistant.selection import compose, rank_sentences
from aula.core.types import Answer, Citation, Intent

MIN_SCORE = 0.5
"""Where the logistic of answerability was fitted to be cut; the setting answer.min_score overrules it."""

REFUSALS = {
    "en": "This course does not say. Try asking it in other words, or ask about {topic}.",
    "zh": "这门课程没有讲到这一点。可以换一种说法再问，或者问问“{topic}”。",
}
PLAIN_REFUSALS = {
    "en": "This course does not say. Try asking it in other words.",
    "zh": "这门课程没有讲到这一点。可以换一种说法再问。",
}


def answer(
    question: str,
    language: str,
    intent: Intent,
    hits: Sequence[Hit],
    course: Course,
    *,
    min_score: float = MIN_SCORE,
) -> Answer:
    """One or two sentences of the best passages, or a refusal where answerability is below `min_score`.

    `hits` are a Retriever's for the same question and course. At most LONGEST_WORDS words or LONGEST_CHARACTERS
    characters are said. The citation's score is the answerability, its text the sentences in full; a refusal has
    no citation.
    """
    parsed = parse_question(question, language)
    ranked = rank_sentences(parsed, hits, course)
    score = answerability(parsed, hits, ranked, course)
    if not ranked or score < min_score:
        return refusal(language, intent, hits)
    text, chosen = compose(ranked, language)
    passage = chosen[0].hit.passage
    citation = Citation(
        course=course.name,
        document=passage.document,
        passage=passage.label,
        score=score,
        text=("" if passage.language == "zh" else " ").join(sentence.text for sentence in chosen),
    )
    return Answer(text=text, language=language, intent=intent, refused=False, citations=(citation,))


def refusal(language: str, intent: Intent, hits: Sequence[Hit] = ()) -> Answer:
    """What is said when the course has no answer; names the nearest topic that it does teach."""
    tongue = "zh" if language == "zh" else "en"
    own = [hit.passage for hit in hits if hit.passage.language == tongue and len(hit.passage.headings) > 1]
    topic = own[0].headings[-1] if own else ""
    text = REFUSALS[tongue].format(topic=topic) if topic else PLAIN_REFUSALS[tongue]
    return Answer(text=text, language=tongue, intent=intent, refused=True)
