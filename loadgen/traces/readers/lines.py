"""Files of one JSON object a line, and the fields of such objects."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson

from shared.errors import ConfigError

_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`number` counts from 1."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def complain(self, what: str) -> NoReturn:
        raise ConfigError(f"{self.path}, line {self.number}: {what}")

    def whole(self, field: str, *, least: int, default: int | None = None) -> int:
        value = self._value(field, default)
        if not is_whole(value, least):
            self.complain(f"{field} is {shown(value)}, not a whole number of at least {least}")
        return int(value)

    def number_of(self, field: str, *, default: float | None = None) -> float:
        value = self._value(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            self.complain(f"{field} is {shown(value)}, not a number of at least 0")
        return float(value)

    def whole_list(self, field: str) -> tuple[int, ...]:
        values = self.fields.get(field, [])
        if not isinstance(values, list) or not all(is_whole(value, 0) for value in values):
            self.complain(f"{field} is {shown(values)}, not a list of whole numbers of at least 0")
        return tuple(values)

    def _value(self, field: str, default: float | None) -> Any:
        if field not in self.fields and default is None:
            self.complain(f"{field} is missing")
        return self.fields.get(field, default)


def json_lines(path: Path) -> Iterator[Line]:
    """Every line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield Line(path=path, number=number, fields=_object(path, number, text))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _object(path: Path, number: int, text: bytes) -> Mapping[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}, line {number}: not a JSON object")
    return fields


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def shown(value: Any) -> str:
    """A value as a complaint shows it: one line, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
