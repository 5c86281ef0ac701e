"""The model card: every figure in it comes from what was measured, none is typed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.recogniser.figures import Cost

Rates = Mapping[str, tuple[float, int]]
"""Word error rate and clips, by group."""

NAMES = {
    "speechocean762": "speechocean762, speakers never trained on", "ljspeech": "LJSpeech, one woman reads books",
    "fsdd": "single digits, two men", "misc": "a president, and PocketSphinx's own clips",
}  # fmt: skip
SEXES = {"m": "male", "f": "female"}


@dataclass(frozen=True)
class Measured:
    """`greedy` is of the training's own weights on the GPU by chunk, from report.jsonl; the others are of what ships.
    `whole` and `shipped` are of the same clips, in float32 and in int8, without a course."""

    trained: Mapping[str, Any]
    parameters: int
    chunk: int
    bytes: int
    greedy: Mapping[int, Rates]
    whole: Rates
    shipped: Rates
    in_course: Rates
    found: float
    questions: int
    kept: float
    spoilt: float
    least: float
    cost: Cost


def written(measured: Measured) -> str:
    trained, cost = measured.trained, measured.cost
    hours, minutes = float(trained.get("bank_hours", 0)), float(trained.get("seconds", 0)) / 60
    rounded = {group: rate for group, rate in measured.shipped.items() if group in measured.whole}
    return f"""# The recogniser that ships

A streaming recogniser of English: log-mel frames, a Conformer of {measured.parameters / 1e6:.1f} million weights that
hears in chunks of {40 * measured.chunk} ms, and CTC over pieces of words. {measured.bytes / 1e6:.1f} MB in int8.
Licence: Apache-2.0.

## What it was trained on
{hours:.1f} hours: free synthesisers that read free texts, and people's speech: speechocean762's training speakers
(Mandarin speakers' English, children and adults; CC BY 4.0), some speakers of the Free Spoken Digit Dataset (CC BY-SA
4.0) and a LibriVox reader (public domain). {minutes:.1f} minutes on one GPU, {trained.get("step", "?")} steps.
The search counts words and pairs of words as the same texts have them (language.npz), without any sentence of the
speakers it was tuned on or is judged by.
Sources, licences and commands: training/recogniser/README.md.

## What it gets wrong
Word error rates of what ships (int8, beam search with the counts of everyday English, without a course) on clips that
no part of the training heard; 0 is perfect, above 1 more is wrong than was said.

{_table(measured.shipped)}

On people's clips the float32 weights have {_all(measured.whole)} in all, and int8 has {_all(rounded)}.

With a course's words: {measured.questions} questions on the mechanics course, spoken by voices never trained on
({", ".join(measured.in_course)}): word error rate {_all(measured.in_course)}; the right passage is among
the five best for {measured.found:.0%}.

As trained, best path, by how much is heard at once:

{_chunks(measured.greedy)}

## When it is not sure
A transcript whose confidence is under {measured.least:g} is asked again rather than answered. Of usable transcripts
(two words of three right) {measured.kept:.0%} pass; of the others, Mandarin and noise among them,
{measured.spoilt:.0%} do; measured on clips that the confidence was not fitted on.

## What it costs
{cost.rtf:.3f} seconds of one core for a second of sound; {cost.commit_ms:.0f} ms from the commit of a question of
{cost.seconds} seconds to its text (nine of ten within {cost.commit_worst_ms:.0f} ms); {cost.opened_mb:.0f} MB more in
a process. Engine: {cost.engine}.

## What it cannot do
- English alone. Letters and an apostrophe: it writes numbers in words and knows no punctuation.
- It has heard few people: the Mandarin speakers of one corpus, a few men who say digits, and one reader. Other accents
  and the youngest children were never measured. Where groups differ in the table above, so will pupils: do not grade
  anybody by its transcripts.
- Several people at once, far microphones and loud rooms were only simulated.
- It is no aid for diagnosis, and its confidence says nothing about a speaker.
"""


def _table(rates: Rates) -> str:
    rows = ["| clips | word error rate | number |", "|---|---|---|"]
    for group, (rate, clips) in rates.items():
        rows.append(f"| {_named(group)} | {rate:.3f} | {clips} |")
    return "\n".join(rows)


def _chunks(greedy: Mapping[int, Rates]) -> str:
    groups = list(dict.fromkeys(group for rates in greedy.values() for group in rates))
    rows = [f"| clips | {' | '.join(f'{40 * chunk} ms' for chunk in greedy)} |", "|---|" + "---|" * len(greedy)]
    for group in groups:
        cells = [f"{rates[group][0]:.3f}" if group in rates else "" for rates in greedy.values()]
        rows.append(f"| {_named(group)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _named(group: str) -> str:
    source, *rest = group.split(", ")
    return ", ".join([NAMES.get(source, source), *(SEXES.get(part, part) for part in rest)])


def _all(rates: Rates) -> str:
    return f"{overall(rates):.3f}"


def overall(rates: Rates) -> float:
    """Over the groups that are no part of another, weighed by clips."""
    whole = [row for group, row in rates.items() if ", " not in group]
    clips = sum(count for _, count in whole)
    return sum(rate * count for rate, count in whole) / max(1, clips)


def greedy_rates(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, tuple[float, int]]]:
    """report.jsonl's lines by chunk and group."""
    found: dict[int, dict[str, tuple[float, int]]] = {}
    for line in lines:
        if "group" in line:
            found.setdefault(int(line["chunk"]), {})[str(line["group"])] = (float(line["wer"]), int(line["clips"]))
    return found
