"""Which questions ask the same. Meaning decides where the runtime embeds the language, shared words elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aula.assistant.languages import terms
from aula.assistant.packs import EMBEDDED_LANGUAGES
from aula.core.errors import AulaError
from aula.core.types import Capability, Context, Float32
from aula.runtime import Runtime

LIKE = 0.55
"""Least cosine of two questions that ask the same, by all-MiniLM-L6-v2. Of 20,000 pairs of CLINC150's test questions
43 % of those of one intent lie above it, and 0.2 % of those of two: a topic may be split, and is seldom mixed."""
SHARED = 0.5
"""Least part of all terms of two questions that both have."""
MOST_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Said:
    text: str
    language: str


class Likeness:
    """Remembers vectors as long as their questions are asked about."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._vectors: dict[Said, Float32] = {}

    async def groups(self, questions: Sequence[Said], context: Context) -> list[list[int]]:
        """Places in `questions`, those that ask the same together; groups and places in their order. Where nothing
        embeds now, words decide."""
        await self._embed(questions, context)
        groups: list[list[int]] = []
        for place, question in enumerate(questions):
            best = max(groups, key=lambda group: self._like(questions[group[0]], question), default=None)
            if best is not None and self._like(questions[best[0]], question) >= 0:
                best.append(place)
            else:
                groups.append([place])
        return groups

    def _like(self, one: Said, other: Said) -> float:
        """How far above its threshold; below 0: they do not ask the same."""
        mine, yours = self._vectors.get(one), self._vectors.get(other)
        if mine is not None and yours is not None:
            return float(mine @ yours) - LIKE
        if one.language != other.language:
            return -1.0
        ours, theirs = _words(one), _words(other)
        return len(ours & theirs) / max(1, len(ours | theirs)) - SHARED

    async def _embed(self, questions: Sequence[Said], context: Context) -> None:
        wanted = dict.fromkeys(questions)
        self._vectors = {said: vector for said, vector in self._vectors.items() if said in wanted}
        missing = [one for one in wanted if one not in self._vectors and one.language in EMBEDDED_LANGUAGES]
        for start in range(0, len(missing), MOST_AT_ONCE):
            some = missing[start : start + MOST_AT_ONCE]
            try:
                outcome = await self._runtime.submit(Capability.EMBED, [one.text for one in some], context)
            except AulaError:
                return  # busy or out of order: the next look asks again
            vectors: Float32 = np.asarray(outcome.value, dtype=np.float32)
            self._vectors.update(zip(some, vectors, strict=True))


@lru_cache(maxsize=1024)
def _words(said: Said) -> frozenset[str]:
    return frozenset(terms(said.text, said.language))
