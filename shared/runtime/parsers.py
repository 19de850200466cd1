"""From the text of an option to its value; a ValueError says what is allowed, in the reader's words."""

import math
import re
from collections.abc import Callable

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    range_text = f"from {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or not least <= int(text) <= (math.inf if most is None else most):
            raise ValueError(f"give a whole number {range_text}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("give a number of seconds above 0")
    return value


def size_bytes(text: str) -> int:
    """Bytes: 512MiB, 2GB, 1.5G or 1073741824."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or (size := int(float(match[1]) * _UNITS[match[2].upper()])) < 1:
        raise ValueError("give a size such as 512MiB or 2GB")
    return size


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"give one of {', '.join(words)}")
        return text

    return parse


def nonempty(text: str) -> str:
    if not text.strip():
        raise ValueError("give a name that is not empty")
    return text
