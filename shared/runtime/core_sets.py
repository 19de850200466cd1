"""Sets of cores as options write them: "0", "0-1,4"; the empty text means all cores that this process may use."""

import os
import re
from collections.abc import Sequence

from shared.errors import ConfigError


def cores_of(text: str) -> tuple[int, ...]:
    """The cores in ascending order. Raises ValueError for what is no set of cores."""
    cores: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError("give cores such as 0-1,4")
        cores.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cores))


def text_of(cores: Sequence[int]) -> str:
    """The shortest text of these ascending cores; `cores_of` reads it back."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def core_set(text: str) -> str:
    """The parser of the option: the set in its shortest form."""
    return text_of(cores_of(text))


def usable_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def chosen(option: str | None, usable: Sequence[int]) -> tuple[int, ...]:
    """What `--cores` names; nothing if it names nothing. Raises ConfigError for cores that are not usable."""
    cores = cores_of(option or "")
    if absent := [core for core in cores if core not in usable]:
        raise ConfigError(
            f"--cores {option}: this process cannot use core {absent[0]} (it may use {text_of(usable)})", param="cores"
        )
    return cores
