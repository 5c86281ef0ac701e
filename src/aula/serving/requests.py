"""A request before it is anybody's ticket: what it asks for, and whether it can be."""

import math
from collections.abc import Sequence
from typing import Any

from aula.core.errors import InputError
from aula.core.types import Capability, Context, DetectRequest, SpeakRequest, TranscribeRequest
from aula.serving.tasks import DETECT, EMBED, SPEAK, TRANSCRIBE, UNDERSTAND, Task

LONGEST_NAME = 128
"""Characters of a tenant's name: it is kept, compared and shown."""


def work_of(capability: Capability, payload: Any, context: Context) -> tuple[Task, list[tuple[int, Any]]]:
    """What is to be run, as sizes and payloads: a text each, so that texts of like length share a batch and nobody
    waits behind a whole course."""
    match capability, payload:
        case Capability.DETECT, DetectRequest():
            return DETECT, [(1, (payload, context))]
        case Capability.TRANSCRIBE, TranscribeRequest():
            return TRANSCRIBE, [(1, (payload, context))]
        case Capability.UNDERSTAND, str():
            return UNDERSTAND, [(max(1, len(payload)), (payload, context))]
        case Capability.EMBED, [*texts] if all(isinstance(text, str) for text in texts):
            work: list[tuple[int, Any]] = [(max(1, len(texts[index])), (texts[index],)) for index in by_length(texts)]
            return EMBED, work or [(1, ())]
        case Capability.SPEAK, SpeakRequest():
            return SPEAK, [(1, (payload, context))]
    raise TypeError(f"{capability} does not take {type(payload).__name__}; submit() has a table of what it takes")


def by_length(texts: Sequence[str]) -> list[int]:
    """Their places in the order in which they are run: neighbours share a batch, and little of it is padding."""
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))


def check(context: Context) -> None:
    """Raises InputError for a context that cannot be."""
    tenant, deadline = context.tenant, context.deadline
    if not isinstance(tenant, str) or not 0 < len(tenant) <= LONGEST_NAME:
        raise InputError(
            f"the tenant is {str(tenant)[:40]!r}",
            available=[f"1 to {LONGEST_NAME} characters"],
            next_step="name a class",
        )
    if deadline is not None and (
        isinstance(deadline, bool) or not isinstance(deadline, int | float) or math.isnan(deadline)
    ):
        raise InputError(f"the deadline is {deadline!r}", next_step="give a moment of the runtime's clock, or None")
    if not isinstance(context.language, str) or not isinstance(context.tier, str):
        raise InputError(
            f"language {context.language!r} and tier {context.tier!r} must be words",
            next_step='like "en" and "question"',
        )
