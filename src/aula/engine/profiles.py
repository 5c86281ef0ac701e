"""Profiles as people give them: written on the command line, or derived from recorded sizes of real requests."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aula.core.errors import EngineError
from aula.engine.histogram import Recorded, read_histogram
from aula.engine.recipe import Profile, Size

MOST_PROFILES = 3
"""How many profiles a histogram gives at most: each is one more to compile, to prove and to keep in memory."""

_MOST_UNITS = 2_048
"""Sizes between which a histogram may be split; the work grows with the square of it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SIZES = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9}){0,2}")

Sizes = tuple[int, ...]
"""The sizes of one request, in the order of the dimensions."""


def read_profiles(options: Sequence[str], dimensions: Sequence[str]) -> tuple[Profile, ...]:
    """The profiles of every `--profile`: a specification (`read_profile`), or `@` and a file of recorded requests
    (`read_histogram`), from which at most MOST_PROFILES are derived. Raises EngineError."""
    profiles: list[Profile] = []
    for option in options:
        if option.startswith("@"):
            profiles += profiles_from_histogram(read_histogram(Path(option[1:]), dimensions))
        else:
            profiles.append(read_profile(option, dimensions))
    for name, times in Counter(profile.name for profile in profiles).items():
        if times > 1:
            raise EngineError(
                f"{times} profiles have the name {name!r}", next_step=f"name each differently: {_example(dimensions)}"
            )
    return tuple(profiles)


def read_profile(text: str, dimensions: Sequence[str]) -> Profile:
    """The profile that `text` specifies: `name:dimension=sizes,dimension=sizes`.

    Sizes are one number (a fixed size), two (least-greatest, the greatest being the usual one too, since that is
    where the engine has to hold) or three (least-usual-greatest). Without `name:` the profile is named after its
    greatest sizes. Every one of `dimensions` is given once. Raises EngineError that shows the wrong text and a right
    one.
    """
    name, colon, rest = text.strip().partition(":")
    if not colon:
        name, rest = "", name
    elif not _NAME.fullmatch(name):
        raise _wrong(text, f"{name!r} is no name (letters, digits, dots and dashes)", dimensions)
    sizes: dict[str, Size] = {}
    for part in rest.split(","):
        dimension, equals, numbers = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise _wrong(text, f"{part.strip()!r} is not dimension=sizes", dimensions)
        if dimension not in dimensions:
            raise _wrong(text, f"the graph has no free dimension {dimension!r}", dimensions)
        if dimension in sizes:
            raise _wrong(text, f"{dimension} is given twice", dimensions)
        sizes[dimension] = _read_sizes(text, dimension, numbers, dimensions)
    missing = [dimension for dimension in dimensions if dimension not in sizes]
    if missing:
        raise _wrong(text, f"it does not say {' and '.join(missing)}", dimensions)
    ordered = {dimension: sizes[dimension] for dimension in dimensions}
    return Profile(name or _name(ordered), ordered)


def _read_sizes(text: str, dimension: str, numbers: str, dimensions: Sequence[str]) -> Size:
    if not _SIZES.fullmatch(numbers):
        raise _wrong(
            text, f"the sizes {numbers!r} of {dimension} are not one to three numbers like 3-16-64", dimensions
        )
    values = [int(number) for number in numbers.split("-")]
    if values[0] < 1 or values != sorted(values):
        raise _wrong(text, f"the sizes {numbers} of {dimension} do not rise from 1", dimensions)
    return Size(values[0], values[1] if len(values) == 3 else values[-1], values[-1])


def _wrong(text: str, why: str, dimensions: Sequence[str]) -> EngineError:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return EngineError(
        f"the profile {shown!r} cannot be used: {why}",
        available=dimensions,
        next_step=f"write it like this: --profile {_example(dimensions)}",
    )


def _example(dimensions: Sequence[str]) -> str:
    """A right specification: the first dimension fixed, the others free."""
    sizes = [
        f"{name}={'1' if place == 0 and len(dimensions) > 1 else '3-16-64'}" for place, name in enumerate(dimensions)
    ]
    return f"question:{','.join(sizes)}"


def _name(sizes: Mapping[str, Size]) -> str:
    return "-".join(re.sub(r"[^\w.-]", "_", dimension) + str(size.greatest) for dimension, size in sizes.items())


def profiles_from_histogram(rows: Iterable[Recorded], most: int = MOST_PROFILES) -> tuple[Profile, ...]:
    """At most `most` profiles, smallest first, into which the recorded requests fit with the least padding.

    The cost of a split: a request is padded to its profile's greatest sizes, so it costs their product, summed over
    all requests. Requests are put in order, and the cheapest cut of that order into consecutive groups is found by
    dynamic programming, as in R. Bellman, "A note on cluster analysis and dynamic programming", Mathematical
    Biosciences 18 (1973): the best k groups of the first j are the best k - 1 of the first i and one group of the
    rest, for the best i. With one free dimension some cheapest split is consecutive, so nothing is cheaper; with
    more, orders by volume and by each dimension are tried and the cheapest result taken. Beyond 2048 distinct sizes
    near ones are never separated.

    A profile's least and greatest sizes are those of its group, its usual ones the group's most frequent request (the
    larger of equally frequent ones). Fewer profiles are given where more would save nothing. Raises EngineError for no
    rows, for rows of different dimensions and for `most` under 1.
    """
    rows = list(rows)
    if most < 1 or not rows:
        raise EngineError(
            f"{most} profiles cannot be made of {len(rows)} recorded sizes",
            next_step="record at least one request and ask for at least one profile",
        )
    names = tuple(rows[0].sizes)
    counted: Counter[Sizes] = Counter()
    for row in rows:
        if set(row.sizes) != set(names):
            raise EngineError(
                f"one request records {', '.join(row.sizes)}, another {', '.join(names)}",
                next_step="record the same dimensions of every request",
            )
        counted[tuple(row.sizes[name] for name in names)] += row.count
    groups = min(
        (_cheapest_cut(order, counted, most) for order in _orders(_units(sorted(counted)))),
        key=lambda cut: (cut[0], len(cut[1])),
    )[1]
    # Two groups of one order may need the same greatest sizes; one profile serves both.
    merged: dict[Sizes, list[Sizes]] = {}
    for group in groups:
        merged.setdefault(_greatest(group), []).extend(group)
    return tuple(
        _profile(names, merged[greatest], counted) for greatest in sorted(merged, key=lambda box: (_volume(box), box))
    )


def _profile(names: Sequence[str], group: Sequence[Sizes], counted: Mapping[Sizes, int]) -> Profile:
    usual = max(group, key=lambda request: (counted[request], _volume(request), request))
    columns = zip(names, usual, zip(*group, strict=True), strict=True)
    sizes = {name: Size(min(column), size, max(column)) for name, size, column in columns}
    return Profile(_name(sizes), sizes)


def _units(requests: list[Sizes]) -> list[list[Sizes]]:
    """Distinct requests, alone if there are few enough, else with neighbours whose sizes round up to the same."""
    units = [[request] for request in requests]
    step = 1
    while len(units) > _MOST_UNITS:
        step *= 2
        near: dict[Sizes, list[Sizes]] = {}
        for request in requests:
            near.setdefault(tuple(-(-size // step) for size in request), []).append(request)
        units = list(near.values())
    return units


def _orders(units: list[list[Sizes]]) -> list[list[list[Sizes]]]:
    """The units by volume and, where more than one dimension is free, by each of these too."""
    free = [at for at, column in enumerate(zip(*map(_greatest, units), strict=True)) if len(set(column)) > 1]
    return [_ordered(units, None), *(_ordered(units, at) for at in free if len(free) > 1)]


def _ordered(units: list[list[Sizes]], dimension: int | None) -> list[list[Sizes]]:
    def place(unit: list[Sizes]) -> Sizes:
        box = _greatest(unit)
        return (_volume(box) if dimension is None else box[dimension], *box)

    return sorted(units, key=place)


def _cheapest_cut(units: list[list[Sizes]], counted: Mapping[Sizes, int], most: int) -> tuple[float, list[list[Sizes]]]:
    """The cost and the groups of the cheapest cut into at most `most` consecutive groups; the fewest of equal cost."""
    boxes = np.array([_greatest(unit) for unit in units], dtype=np.float64)
    ends = np.cumsum([0, *(sum(counted[request] for request in unit) for unit in units)], dtype=np.float64)
    most = min(most, len(units))
    cost = np.full((most + 1, len(units) + 1), np.inf)
    cost[0, 0] = 0
    begin = np.zeros(cost.shape, dtype=np.int64)
    for first in range(len(units)):
        # What one group from `first` to each later unit costs.
        volumes = np.maximum.accumulate(boxes[first:]).prod(axis=1) * (ends[first + 1 :] - ends[first])
        for groups in range(1, most + 1):
            tried = cost[groups - 1, first] + volumes
            better = tried < cost[groups, first + 1 :]
            cost[groups, first + 1 :][better] = tried[better]
            begin[groups, first + 1 :][better] = first
    groups = int(cost[:, -1].argmin())
    found: list[list[Sizes]] = []
    end = len(units)
    for number in range(groups, 0, -1):
        start = int(begin[number, end])
        found.append([request for unit in units[start:end] for request in unit])
        end = start
    return float(cost[groups, -1]), found


def _greatest(requests: Sequence[Sizes]) -> Sizes:
    return tuple(max(column) for column in zip(*requests, strict=True))


def _volume(sizes: Sizes) -> int:
    return math.prod(sizes)
