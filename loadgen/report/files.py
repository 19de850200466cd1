"""Results and records as files. Whoever reads while one is written sees the old file or the new one, never a part."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from loadgen.measure.latencies import measured
from loadgen.record import Record, Run
from shared.errors import ConfigError


def write_json(path: Path, value: Any) -> None:
    """NaN becomes null."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write(path, [orjson.dumps(value, option=options)])


def write_records(path: Path, run: Run) -> None:
    """One line of JSON per scheduled request, in the order of the schedule."""
    columns = _columns(run)
    lines = (_plain(record, columns) for record in run.records)
    write(path, (orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))


def check_writable(path: Path) -> None:
    """Raises ConfigError now rather than when there is something to lose."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"cannot write {path}: no such directory, or no permission")


def write(path: Path, chunks: Iterable[bytes]) -> None:
    """Raises ConfigError when the path cannot be written. What is no plain file, such as a pipe or a link, is written
    through rather than replaced."""
    special = path.is_symlink() or (path.exists() and not path.is_file())
    written = path if special else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with written.open("wb") as file:
            file.writelines(chunks)
        if not special:
            written.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not special:
            with suppress(OSError):
                written.unlink()


def _columns(run: Run) -> dict[str, list[float]]:
    """`tbt_s` is the mean time between the tokens of a request: TPOT under the name that SLOs use."""
    table = measured(run)
    names = {name: name for name in ("ttft_s", "tpot_s", "e2e_s", "second_token_s", "max_gap_s")} | {"tbt_s": "tpot_s"}
    return {name: getattr(table, column).tolist() for name, column in names.items()}


def _plain(record: Record, columns: dict[str, list[float]]) -> dict[str, Any]:
    """A record outside the schedule has no latencies."""
    line = {field.name: getattr(record, field.name) for field in fields(record)} | {"outcome": record.outcome.value}
    known = 0 <= record.index < len(columns["ttft_s"])
    return line | {name: values[record.index] if known else None for name, values in columns.items()}
