"""POST /v1/embeddings"""

import base64
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from aula.assistant.languages import SERVED, detect_language, length
from aula.core.types import UNKNOWN_LANGUAGE, Capability, Float32
from aula.servers.callers import deadline_of
from aula.servers.house import House
from aula.servers.openai.models import check_model
from aula.servers.openai.shapes import Embedding, EmbeddingReply, EmbeddingRequest, PromptUsage
from aula.servers.openai.wire import FieldError, read_json, reply


class Embeddings:
    def __init__(self, house: House) -> None:
        self._house = house

    async def create(self, request: Request) -> Response:
        caller = self._house.doorman.admit(request, "embed")
        deadline = deadline_of(request, self._house.runtime.clock)
        wanted = await read_json(request, EmbeddingRequest)
        check_model(wanted.model, Capability.EMBED)
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        context = caller.context(_language_of(texts), deadline)
        outcome = await self._house.runtime.submit(Capability.EMBED, texts, context)
        vectors: Float32 = outcome.value
        if wanted.dimensions not in (None, vectors.shape[1]):
            raise FieldError(
                f"dimensions is {wanted.dimensions}, and {outcome.rung} has {vectors.shape[1]}",
                param="dimensions",
                next_step="leave it out: a shortened vector of this model would be worth little",
            )
        words = sum(length(text, detect_language(text)) for text in texts)
        data = [Embedding(index, _told(vector, wanted.encoding_format)) for index, vector in enumerate(vectors)]
        return reply(EmbeddingReply(data, wanted.model, PromptUsage(words, words)), outcome.rung)


def _language_of(texts: Sequence[str]) -> str:
    """The language that is hardest to serve: a list with one text that nobody reads is refused as a whole."""
    found = {detect_language(text) for text in texts} - {UNKNOWN_LANGUAGE}
    foreign = sorted(found - set(SERVED))
    return foreign[0] if foreign else max(found, key=SERVED.index, default=UNKNOWN_LANGUAGE)


def _told(vector: Float32, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers
