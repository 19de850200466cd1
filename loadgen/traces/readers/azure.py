"""Azure LLM inference traces of 2023 and 2024: TIMESTAMP, ContextTokens, GeneratedTokens.

Timestamps are UTC, "2023-11-16 18:17:03.9799600" or "2024-05-10 00:00:00.009930+00:00".
"""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.traces.readers.columns import Column, count_column, pieces
from loadgen.traces.readers.rows import Rows
from loadgen.traces.trace import Trace
from shared.errors import ConfigError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
_WHOLE = len("2023-11-16 18:17:03")
_FRACTION = 9  # digits at most
_EPOCH = datetime.datetime(2000, 1, 1)
_TICKS_PER_S = 10_000_000


def read(path: Path, *, limit: int | None = None) -> Trace:
    rows = Rows(limit)
    for piece in pieces(path, _COLUMNS, limit=limit):
        rows.add(piece["TIMESTAMP"], piece["ContextTokens"], piece["GeneratedTokens"])
        if rows.full:
            break
    return rows.trace(path)


def write(trace: Trace, path: Path) -> None:
    """The three columns hold neither users nor what prompts share: a trace with such is refused. Times are kept to
    100 ns, from 1 January 2000 on."""
    if not trace.open_loop or any(request.blocks for request in trace.requests):
        raise ConfigError(f"{path}: CSV cannot hold users or shared prompts; give --out a name that ends in .jsonl")
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(HEADER + "\n")
            for r in trace.requests:
                file.write(f"{_stamp(r.at_s)},{r.prompt_tokens},{r.output_tokens}\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _stamp(at_s: float) -> str:
    whole_s, ticks = divmod(round(at_s * _TICKS_PER_S), _TICKS_PER_S)
    return f"{_EPOCH + datetime.timedelta(seconds=whole_s)}.{ticks:07d}"


def _nanoseconds(stamps: NDArray[Any]) -> NDArray[Any]:
    """Of a whole array of bytes at once. Raises ValueError when one of them is no UTC time."""
    letters = stamps.view(np.uint8).reshape(len(stamps), stamps.dtype.itemsize)
    seconds = np.ascontiguousarray(letters[:, :_WHOLE]).view(f"S{_WHOLE}").ravel().astype("datetime64[s]")
    digits = letters[:, _WHOLE + 1 : _WHOLE + 1 + _FRACTION].astype(np.int64) - ord("0")
    dotted = letters[:, _WHOLE] == ord(".")
    in_fraction = np.logical_and.accumulate((digits >= 0) & (digits <= 9), axis=1) & dotted[:, np.newaxis]
    fraction_ns = (digits * in_fraction) @ (10 ** np.arange(_FRACTION - 1, -1, -1))
    rest = np.strings.str_len(stamps) - _WHOLE - dotted - in_fraction.sum(axis=1)
    utc = (
        (rest == 0)
        | ((rest == 1) & np.strings.endswith(stamps, b"Z"))
        | ((rest == 6) & np.strings.endswith(stamps, b"+00:00"))
    )
    if not utc.all() or np.isnat(seconds).any():
        raise ValueError("no time in UTC")
    return np.asarray(seconds.astype(np.int64) * 1_000_000_000 + fraction_ns)


_COLUMNS = (
    Column(name="TIMESTAMP", dtype="S48", meant="a time such as 2023-11-16 18:17:03.979 (UTC)", parse=_nanoseconds),
    count_column("ContextTokens"),
    count_column("GeneratedTokens"),
)
