"""BurstGPT traces: Timestamp in seconds, Request tokens, Response tokens, and columns that are not needed here.

Failed calls are kept in the files as rows without response tokens; they are skipped. Sessions, where a file names them,
are not followed: every request keeps its own time.
"""

from pathlib import Path

import numpy as np

from loadgen.traces.readers.columns import count_column, pieces, seconds_column
from loadgen.traces.readers.rows import Rows
from loadgen.traces.trace import Trace

_COLUMNS = (seconds_column("Timestamp"), count_column("Request tokens"), count_column("Response tokens"))


def read(path: Path, *, limit: int | None = None) -> Trace:
    rows = Rows(limit)
    for piece in pieces(path, _COLUMNS, limit=limit):
        time_ns = np.rint(piece["Timestamp"] * 1e6).astype(np.int64) * 1000  # to a microsecond
        rows.add(time_ns, piece["Request tokens"], piece["Response tokens"])
        if rows.full:
            break
    return rows.trace(path)
