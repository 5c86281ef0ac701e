"""Who may have how much, and which rungs serve: what an operator decides, for every group of a runtime."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aula.core.errors import InputError, SettingsError
from aula.core.settings import Settings
from aula.core.types import Capability
from aula.scheduling.admission import Quota
from aula.scheduling.ladder import Policy
from aula.scheduling.queue import LEAST_SHARES
from aula.serving.places import Rung

HOUSE = "aula"
"""The tenant of the server's own trials, which are let in however strict the rules are."""


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
    memory: Mapping[str, int] = field(default_factory=dict)
    """Most bytes of models by device: host, and gpu for each of them."""
    strict: bool = False
    """Serve only tenants that `quotas` name."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Rules":
        """Raises SettingsError for a tenants.file that cannot be read, with what is wrong in which table."""
        path = settings.text("tenants.file")
        quotas, weights = read_tenants(Path(path).expanduser()) if path else ({}, {})
        return cls(
            quotas=quotas,
            weights=weights,
            usual=Quota(
                rate=settings.number("tenants.rate") or None,
                burst=settings.whole("tenants.burst"),
                concurrency=settings.whole("tenants.concurrency") or None,
                device_ms_a_minute=settings.number("tenants.device_ms") or None,
            ),
            shares=settings.section("tiers"),
            ladders={one: _names(settings.text(f"ladder.{one}")) for one in Capability if one is not Capability.INFER},
            memory={one: 2**20 * settings.whole(f"memory.{one}_mb") for one in ("host", "gpu")},
            strict=settings.flag("tenants.strict"),
        )

    def check(self, tenant: str) -> None:
        """Raises InputError for a tenant that is not served."""
        if self.strict and tenant not in self.quotas and tenant != HOUSE:
            raise InputError(
                f"there is no tenant {tenant!r}", next_step="name it in tenants.file, or set tenants.strict = false"
            )

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
    """Rungs that share a worker or a ladder belong together, and so does whoever shares with these."""
    groups: list[set[int]] = []
    for index, rung in enumerate(rungs):
        near: list[set[int]] = []
        far: list[set[int]] = []
        for group in groups:
            kin = any(rungs[other].worker == rung.worker or rungs[other].ladder == rung.ladder for other in group)
            (near if kin else far).append(group)
        groups = [*far, {index}.union(*near)]
    return [[rungs[index] for index in sorted(group)] for group in groups]


def read_tenants(path: Path) -> tuple[dict[str, Quota], dict[str, float]]:
    """Quotas and weights by tenant, out of a TOML file with a table for each. Raises SettingsError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"tenants.file {path} cannot be read ({error.strerror})", next_step="correct tenants.file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML ({error})", next_step="write tables like: [class-5b]") from error
    quotas, weights = {}, {}
    for tenant, row in document.items():
        if not isinstance(row, dict):
            raise SettingsError(f"{path}: {tenant} is no table", next_step=f"write: [{tenant}]")
        if unknown := sorted(set(row) - set(_FIELDS)):
            raise SettingsError(
                f"{path}: [{tenant}] sets {', '.join(unknown)}", available=list(_FIELDS), next_step="correct the name"
            )
        values = {name: _positive(value, _FIELDS[name], f"{path}: [{tenant}] {name}") for name, value in row.items()}
        weights[tenant] = values.pop("weight", 1.0)
        quotas[tenant] = Quota(**values)
    return quotas, weights


_FIELDS: Mapping[str, type] = {
    "rate": float,
    "burst": int,
    "concurrency": int,
    "device_ms_a_minute": float,
    "weight": float,
}


def _positive(value: object, kind: type, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < float(str(value)) < math.inf or (kind is int and not isinstance(value, int)):
        raise SettingsError(
            f"{where} is {value!r}", next_step=f"give a {'whole number' if kind is int else 'number'} above 0"
        )
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
