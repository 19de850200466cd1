"""Columns of large CSV files with a header, read in pieces by numpy: tens of millions of rows in a minute or so.

numpy does not say which field of which line it could not read; so when a piece fails, its lines are gone through one by
one to find out.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError

PIECE_ROWS = 1 << 18
FEWEST_ROWS = 1_000
MOST_SECONDS = 9e9  # centuries; nanoseconds of it fit in 64 bits
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`name` as in the header, whatever its case. `parse` reads a whole array of fields as numpy made them of `dtype`,
    and raises ValueError; `meant` says what belongs there."""

    name: str
    dtype: str
    meant: str
    parse: Callable[[NDArray[Any]], NDArray[Any]]


def count_column(name: str) -> Column:
    return Column(name=name, dtype="i8", meant="a whole number of at least 0", parse=_at_least_zero)


def seconds_column(name: str) -> Column:
    return Column(name=name, dtype="f8", meant=f"a number of seconds up to {MOST_SECONDS:.0e}", parse=_seconds)


def pieces(path: Path, columns: Sequence[Column], *, limit: int | None) -> Iterator[Columns]:
    """The columns, piece by piece. `limit`: how many rows the caller is likely to need."""
    rows = PIECE_ROWS if limit is None else min(PIECE_ROWS, max(FEWEST_ROWS, limit))
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            places = _places(path, file.readline(), columns)
            line = 2
            while lines := list(itertools.islice(file, rows)):
                if any(text.strip() for text in lines):
                    yield _parsed(path, line, lines, columns, places)
                line += len(lines)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _places(path: Path, header: str, columns: Sequence[Column]) -> list[int]:
    names = [name.strip().casefold() for name in header.split(",")]
    missing = [column.name for column in columns if column.name.casefold() not in names]
    if missing:
        raise ConfigError(f"{path}, line 1: the header has no {' and no '.join(missing)}")
    return [names.index(column.name.casefold()) for column in columns]


def _parsed(path: Path, line: int, lines: list[str], columns: Sequence[Column], places: list[int]) -> Columns:
    dtype = np.dtype([(column.name, column.dtype) for column in columns])
    try:
        table = np.loadtxt(lines, dtype=dtype, delimiter=",", comments=None, usecols=places, ndmin=1)
        return {column.name: column.parse(np.ascontiguousarray(table[column.name])) for column in columns}
    except ValueError:
        _explain(path, line, lines, columns, places)
        raise ConfigError(f"{path}: lines {line} to {line + len(lines) - 1} cannot be read") from None


def _explain(path: Path, line: int, lines: list[str], columns: Sequence[Column], places: list[int]) -> None:
    """Raises ConfigError for the first field that cannot be read."""
    for number, text in enumerate(lines, start=line):
        fields = text.rstrip("\r\n").split(",")
        if not text.strip():
            continue
        for column, place in zip(columns, places, strict=True):
            if place >= len(fields):
                raise ConfigError(f"{path}, line {number}: {column.name} is missing, there are {len(fields)} fields")
            try:
                column.parse(np.array([fields[place].strip()]).astype(column.dtype))
            except ValueError:
                raise ConfigError(
                    f"{path}, line {number}: {column.name} is {fields[place]!r}, not {column.meant}"
                ) from None


def _at_least_zero(values: NDArray[Any]) -> NDArray[Any]:
    if values.min() < 0:
        raise ValueError("negative")
    return values


def _seconds(values: NDArray[Any]) -> NDArray[Any]:
    if not (np.abs(values) <= MOST_SECONDS).all():  # NaN is not either
        raise ValueError("out of range")
    return values
