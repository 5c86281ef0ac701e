"""Who may have how much, and which rungs serve: what an operator decides, for every group of a runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aula.core.errors import SettingsError
from aula.core.types import Capability
from aula.scheduling.admission import Quota
from aula.scheduling.ladder import Policy
from aula.scheduling.queue import LEAST_SHARES
from aula.serving.places import Rung


@dataclass(frozen=True, slots=True)
class Rules:
    """`quotas` and `weights` by tenant, `usual` for everybody else; `shares` by tier. `ladders`: by capability, the
    names of the rungs that serve, best first; where it names none, all that there are."""

    quotas: Mapping[str, Quota] = field(default_factory=dict)
    usual: Quota = field(default_factory=Quota)
    weights: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=lambda: LEAST_SHARES)
    ladders: Mapping[Capability, tuple[str, ...]] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)

    def in_order(self, rungs: Sequence[Rung]) -> list[Rung]:
        """The rungs that serve, as the ladders name them. Raises SettingsError for names that are not."""
        kept = list(rungs)
        for capability, names in self.ladders.items():
            own = {rung.info.name: rung for rung in rungs if rung.info.capability is capability}
            if unknown := [name for name in names if name not in own]:
                raise SettingsError(
                    f"the ladder of {capability} names {', '.join(unknown)}",
                    available=list(own),
                    next_step="name these",
                )
            if names:
                kept = [rung for rung in kept if rung.info.capability is not capability]
                kept += [own[name] for name in names]
        return kept


def groups_of(rungs: Sequence[Rung]) -> list[list[Rung]]:
    """Rungs that share a worker or a capability belong together, and so does whoever shares with these."""
    groups: list[set[int]] = []
    for index, rung in enumerate(rungs):
        near: list[set[int]] = []
        far: list[set[int]] = []
        for group in groups:
            kin = any(
                rungs[other].worker == rung.worker or rungs[other].info.capability is rung.info.capability
                for other in group
            )
            (near if kin else far).append(group)
        groups = [*far, {index}.union(*near)]
    return [[rungs[index] for index in sorted(group)] for group in groups]
