"""Reading a mapping of a file key by key. Every complaint is one ConfigError that names the file, the key and what is
allowed there."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from shared.errors import ConfigError
from shared.runtime.parsers import whole_number as whole_number_in_text

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
_REQUIRED: Any = object()


class Fields:
    """`where`: the file and the place in it. A parser raises ValueError with what to give instead; a key that is left
    empty counts as not given. `finish` complains of keys that nobody took."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: give a mapping of keys to values, not {_shown(values)}")
        self._values = dict(values)
        self._where = where
        self._known: list[str] = []

    def take(self, key: str, parse: Callable[[Any], T], default: T = _REQUIRED) -> T:
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is None:
            if default is _REQUIRED:
                close = difflib.get_close_matches(key, map(str, self._values), n=1)
                guess = f", {close[0]!r} is not it" if close else ""
                raise ConfigError(f"{self._where}: {key} is missing{guess}; {self._wanted(parse)}", param=key)
            return default
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{self._where}: {key} is {_shown(value)}; {error}", param=key) from error

    def finish(self) -> None:
        for key in self._values:
            close = difflib.get_close_matches(str(key), self._known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"{self._where}: unknown key {key!r}; {guess}keys are {', '.join(self._known)}", param=str(key)
            )

    @staticmethod
    def _wanted(parse: Callable[[Any], Any]) -> str:
        """A parser's own words, from its complaint of nothing."""
        try:
            parse(None)
        except ValueError as error:
            return str(error)
        raise AssertionError("a parser must refuse None")


def number(*, above: float | None = None, least: float | None = None) -> Callable[[Any], float]:
    """YAML takes 1e3 for a word; a number that a person would read as one is one."""
    limit = f" above {above:g}" if above is not None else "" if least is None else f" of at least {least:g}"

    def parse(value: Any) -> float:
        try:
            found = math.nan if isinstance(value, bool) or value is None else float(value)
        except (TypeError, ValueError):
            found = math.nan
        low = (above is not None and found <= above) or (least is not None and found < least)
        if not math.isfinite(found) or low:
            raise ValueError(f"give a number{limit}")
        return found

    return parse


def whole_number(least: int, most: int | None = None) -> Callable[[Any], int]:
    parse = whole_number_in_text(least, most)
    return lambda value: parse(str(value))


def numbers(count: int) -> Callable[[Any], tuple[float, ...]]:
    one = number(least=0)

    def parse(value: Any) -> tuple[float, ...]:
        try:
            found = tuple(one(item) for item in value) if isinstance(value, Sequence) and value else ()
        except ValueError:
            found = ()
        if len(found) != count or isinstance(value, str):
            raise ValueError(f"give a list of {count} numbers of at least 0")
        return found

    return parse


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def word(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("give a name that is not empty")
    return value


def one_of(words: Iterable[str]) -> Callable[[Any], str]:
    known = list(words)

    def parse(value: Any) -> str:
        if value not in known:
            close = difflib.get_close_matches(str(value), known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{guess}give one of {', '.join(known)}")
        return str(value)

    return parse


def member_of(words: type[E]) -> Callable[[Any], E]:
    parse = one_of(word.value for word in words)
    return lambda value: words(parse(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
