"""Recorded sizes of real requests, read from JSON lines or a CSV table."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aula.core.errors import EngineError

GREATEST_SIZE = 999_999_999
COUNT = "count"
"""The field that says how often a size was seen; no dimension can bear this name in a histogram."""

_LONGEST_LINE = 65_536
_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_LINE = '{"batch": 1, "sequence": 17}'


@dataclass(frozen=True, slots=True)
class Recorded:
    """Requests of one size: sizes by dimension, and how many there were."""

    sizes: Mapping[str, int]
    count: int = 1


def read_histogram(path: Path, dimensions: Sequence[str] | None = None) -> tuple[Recorded, ...]:
    """Recorded request sizes, equal ones counted together, smallest first.

    The file has JSON lines, {"batch": 1, "sequence": 17} and optionally "count", or is a CSV table with these names
    in its first line. Each line must give exactly `dimensions`; None means those of the first line. Raises EngineError
    that names the line.
    """
    names = None if dimensions is None else tuple(dimensions)
    counted: Counter[tuple[int, ...]] = Counter()
    for line, row in _rows(path):
        found = tuple(key for key in row if key != COUNT)
        names = names or found
        if set(found) != set(names):
            raise _wrong_line(path, line, f"it gives {', '.join(found)[:80] or 'no size'}", names)
        for key, value in row.items():
            if type(value) is not int or not 1 <= value <= GREATEST_SIZE:
                raise _wrong_line(path, line, f"{key[:40]} is {repr(value)[:40]}, not a whole number from 1", names)
        counted[tuple(row[name] for name in names)] += row.get(COUNT, 1)
    if not counted or not names:
        raise EngineError(f"{path} records no request", next_step="record some: one line for each, like " + _LINE)
    return tuple(Recorded(dict(zip(names, sizes, strict=True)), counted[sizes]) for sizes in sorted(counted))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line that is not empty, with its number from 1, as what it holds by name."""
    header: list[str] | None = None
    as_json: bool | None = None
    for number, line in _lines(path):
        if as_json is None:
            as_json = line.startswith("{")
        if as_json:
            yield number, _json_row(path, number, line)
            continue
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise _wrong_line(path, number, f"it is no line of a table ({error})") from error
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not all(_NAME.fullmatch(cell) for cell in header):
                raise _wrong_line(path, number, "it is neither a JSON object nor a table's header")
        elif len(cells) != len(header):
            raise _wrong_line(path, number, f"it has {len(cells)} cells where the header has {len(header)}")
        else:
            yield (
                number,
                {name: int(cell) if _is_number(cell) else cell for name, cell in zip(header, cells, strict=True)},
            )


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", cell) is not None


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong_line(path, number, f"it is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise _wrong_line(path, number, "it is not a JSON object")
    return row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
                if len(raw) == _LONGEST_LINE:
                    raise _wrong_line(path, number, f"it is longer than {_LONGEST_LINE} bytes")
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise _wrong_line(path, number, "it is not UTF-8 text") from error
                if line:
                    yield number, line
    except OSError as error:
        raise EngineError(
            f"the recorded requests {path} cannot be read ({error.strerror or error})",
            next_step="give a file of JSON lines or CSV: --profile @requests.jsonl",
        ) from error


def _wrong_line(path: Path, number: int, why: str, dimensions: Sequence[str] = ()) -> EngineError:
    dimensions = [name[:40] for name in dimensions[:8]]
    example = "{" + ", ".join(f'"{name}": {17 if place else 1}' for place, name in enumerate(dimensions)) + "}"
    return EngineError(
        f"line {number} of {path} cannot be used: {why}",
        available=dimensions,
        next_step=f"write each line like {example if dimensions else _LINE}",
    )
