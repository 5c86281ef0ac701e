"""The one way in: a request of either door becomes the runtime's, for whoever asks, in the time that he gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aula.core.errors import InputError
from aula.core.types import UNKNOWN_LANGUAGE, Context
from aula.runtime import EngineInfo
from aula.servers.callers import Caller, tenant_named
from aula.servers.kserve.engines import TIERS, Engines
from aula.servers.kserve.faults import NotServedError, NotYoursError
from aula.servers.kserve.tensors import Array

T = TypeVar("T")
_NOT_SERVED = ("sequence_id", "classification", "shared_memory_region")
_LONGEST_US = 1 << 63


@dataclass(frozen=True, slots=True)
class Asked:
    """`outputs` are the names of those that are wanted; none means all. `parameters` are the request's, and with them
    its inputs' and outputs', those of the protocol's own wire left out."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]


async def ask(
    engines: Engines,
    engine: EngineInfo,
    caller: Caller,
    came: float,
    read: Callable[[], Asked],
    write: Callable[[Mapping[str, Array]], T],
    until: float | None = None,
) -> T:
    """What `write` makes of the engine's outputs. `came` is the moment at which the request did: its timeout counts
    from there; `until` is the caller's own deadline, where his protocol has one. Raises what `Runtime.infer` raises,
    and InputError."""
    runtime, counts = engines.runtime, engines.count(engine.name)
    now = runtime.clock.now
    begun = now()
    try:
        asked = read()
        _check_outputs(engine, asked.outputs)
        context = context_of(caller, asked.parameters, came)
        if until is not None and (context.deadline is None or until < context.deadline):
            context = replace(context, deadline=until)
        read_at = now()
        made = await runtime.infer(engine.name, asked.inputs, context)
        made_at = now()
        told = write({name: made[name] for name in asked.outputs} if asked.outputs else made)
    except Exception:
        counts.failure(now() - begun)
        raise
    rows = len(next(iter(asked.inputs.values()))) if engine.max_batch > 1 else 1
    counts.success(rows, begun, read_at, made_at, now())
    return told


def context_of(caller: Caller, parameters: Mapping[str, Any], came: float) -> Context:
    """The parameters `timeout` (microseconds), `tier` or Triton's `priority`, and `tenant`, as far as the caller may.
    Raises InputError for what cannot be, NotYoursError for what he may not."""
    for name in _NOT_SERVED:
        if parameters.get(name):
            raise NotServedError(f"{name} is not served here", next_step=f"ask again without {name}")
    timeout = _whole(parameters, "timeout", _LONGEST_US)
    tenant = parameters.get("tenant", caller.tenant)
    tier = parameters.get("tier") or _tier_of(_whole(parameters, "priority", len(TIERS) + 1), caller.tier)
    if tenant != caller.tenant and not caller.may("delegate"):
        raise NotYoursError(
            f"the key is of the tenant {caller.tenant!r}, and may not speak for others",
            next_step="leave the parameter tenant out",
        )
    if tenant != caller.tenant:
        tenant_named(tenant)
    if tier != caller.tier:
        _check_tier(caller, tier)
    deadline = came + timeout / 1e6 if timeout else None
    return Context(UNKNOWN_LANGUAGE, tenant, tier, deadline)


def _check_outputs(engine: EngineInfo, wanted: tuple[str, ...]) -> None:
    known = [spec.name for spec in engine.outputs]
    for name in wanted:
        # An engine whose outputs only loading it tells is asked first.
        if known and name not in known:
            raise InputError(f"{engine.name} has no output {name[:80]!r}", available=known, next_step="name these")


def _check_tier(caller: Caller, tier: Any) -> None:
    if tier not in TIERS:
        raise InputError(f"the tier is {str(tier)[:40]!r}", available=TIERS, next_step="name one of these")
    lawful = TIERS[TIERS.index(caller.tier) :] if caller.tier in TIERS else TIERS
    if tier not in lawful:
        raise NotYoursError(
            f"the key is for the tier {caller.tier!r}, and {tier!r} is more urgent",
            available=lawful,
            next_step="name one of these",
        )


def _tier_of(priority: int, usual: str) -> str:
    return TIERS[priority - 1] if priority else usual


def _whole(parameters: Mapping[str, Any], name: str, below: int) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < below:
        raise InputError(
            f"the parameter {name} is {str(value)[:40]!r}",
            available=[f"0 to {below - 1}"],
            next_step="send a whole number, or leave it out",
        )
    return value
