"""A new model takes a rung's place: loaded beside the old one, warmed, tried, switched; the old one is drained."""

from dataclasses import dataclass

from aula.core.errors import AulaError, EngineError, SettingsError
from aula.core.types import Capability
from aula.serving.group import Group
from aula.serving.places import Place, Rung, Unloadable
from aula.serving.tasks import canary
from aula.serving.threads import WorkerThread


@dataclass(frozen=True, slots=True)
class Swap:
    """`error` None: the new model serves. Else the old one goes on as if nothing had been, and the error says why."""

    capability: Capability
    rung: str
    load_ms: float
    error: AulaError | None


async def swap(group: Group, rung: Rung, thread: WorkerThread) -> Swap:
    """Raises SettingsError for a rung that is not there, or is being swapped already."""
    capability, name = rung.info.capability, rung.info.name
    old = group.places.get((rung.ladder, name))
    if old is None or old.rung.worker != rung.worker:
        raise SettingsError(
            f"no rung {name!r} of {capability} works on {rung.worker!r}",
            available=[f"{one.name} on {one.rung.worker}" for one in group.places.values()],
            next_step="swap a rung for one of the same name and worker",
        )
    if old.is_leaving:
        raise SettingsError(f"{name} is being swapped already", next_step="wait until that has ended")
    old.is_leaving = True
    new = Place(rung, thread)
    group.residence.prepare(new)
    start = group.clock.now()
    proven = False
    try:
        error = await _proven(group, new)
        proven = error is None
    finally:
        if not proven:
            old.is_leaving = False
            group.residence.withdraw(new)
    if proven:
        group.switch(old, new)
    return Swap(capability, name, 1e3 * (group.clock.now() - start), error)


async def _proven(group: Group, new: Place) -> AulaError | None:
    """Load it and run it from end to end, or say why it must not serve."""
    try:
        if (error := await group.load(new)) is not None:
            return error
        await new.thread.call(canary, new.capability, new.model, new.language)
    except Unloadable as failure:
        return failure.error
    except AulaError as failure:
        return failure
    except Exception as failure:
        told = EngineError(f"{new.name} failed: {type(failure).__name__}: {failure}", next_step="build it anew")
        told.__cause__ = failure
        return told
    return None
