"""The service levels of Splitwise (Patel et al., ISCA 2024): slow-downs against the same request on an idle system.

Nine limits, all of which must hold: TTFT 2, 3 and 6 times at P50, P90 and P99; time between tokens (the mean of a
request) and end to end 1.25, 1.5 and 5 times. A request that was due in the window and did not complete counts as
infinitely slow, so that shedding load cannot meet them. For one request the limits at P99 are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from loadgen.measure.latencies import FloatArray, IntArray, Measured, measured
from loadgen.measure.stats import PERCENTILES, number
from loadgen.record import Outcome, Record, Run
from shared.errors import ConfigError

LIMITS = {"ttft": (2.0, 3.0, 6.0), "tbt": (1.25, 1.5, 5.0), "e2e": (1.25, 1.5, 5.0)}  # at PERCENTILES

Table = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSpeed:
    """How fast the system serves a request that has it to itself. `ttft_s`: (prompt tokens, median TTFT), by length."""

    ttft_s: tuple[tuple[int, float], ...]
    tbt_s: float

    @classmethod
    def fit(cls, records: Sequence[Record]) -> "IdleSpeed":
        """From requests that were sent one at a time, at one prompt length or more; those that failed are left out."""
        by_length: dict[int, list[float]] = {}
        tbt_s = []
        for record in records:
            if record.outcome is not Outcome.COMPLETED or not record.event_s:
                continue
            by_length.setdefault(record.prompt_tokens, []).append(record.event_s[0] - record.due_s)
            if record.tokens >= 2:
                tbt_s.append((record.event_s[-1] - record.event_s[0]) / (record.tokens - 1))
        if not tbt_s:
            raise ConfigError("idle speed: no lone request completed with two tokens or more")
        ttft_s = tuple((length, median(by_length[length])) for length in sorted(by_length))
        return cls(ttft_s=ttft_s, tbt_s=median(tbt_s))._checked()

    def ttft_alone_s(self, prompt_tokens: IntArray) -> FloatArray:
        """Linear between the measured lengths and beyond both ends, but never below the smallest measured."""
        lengths = np.array([length for length, _ in self.ttft_s], dtype=np.float64)
        times_s = np.array([time_s for _, time_s in self.ttft_s])
        if len(lengths) == 1:
            return np.full(len(prompt_tokens), times_s[0])
        piece = np.clip(np.searchsorted(lengths, prompt_tokens) - 1, 0, len(lengths) - 2)
        slope = np.diff(times_s) / np.diff(lengths)
        line_s: FloatArray = times_s[piece] + slope[piece] * (prompt_tokens - lengths[piece])
        return line_s.clip(min=times_s.min())

    def _checked(self) -> "IdleSpeed":
        """Slow-downs divide by these."""
        lengths = [length for length, _ in self.ttft_s]
        if not lengths or len(set(lengths)) < len(lengths):
            raise ConfigError("idle speed: ttft_s needs at least one prompt length, and each only once")
        for name, time_s in (("tbt_s", self.tbt_s), *(("ttft_s", time_s) for _, time_s in self.ttft_s)):
            if not 0 < time_s < float("inf"):
                raise ConfigError(f"idle speed: {name} must be above 0, is {time_s:g}; does the server stream tokens?")
        return self


def slow_downs(table: Measured, idle: IdleSpeed) -> dict[str, FloatArray]:
    """Of each request, completed or not; NaN where it has no such time."""
    ttft_s = idle.ttft_alone_s(table.prompt_tokens)
    e2e_s = ttft_s + np.maximum(table.tokens - 1, 0) * idle.tbt_s
    return {"ttft": table.ttft_s / ttft_s, "tbt": table.tpot_s / idle.tbt_s, "e2e": table.e2e_s / e2e_s}


def nine(run: Run, idle: IdleSpeed) -> Table:
    return nine_of(measured(run), idle)


def nine_of(table: Measured, idle: IdleSpeed) -> Table:
    """{"ttft" | "tbt" | "e2e": {"p50" | "p90" | "p99": {"value", "limit", "met"}}, "met"}. A value is None when it is
    infinite, and where no request has such a time; the latter meets its limit if there were requests at all."""
    cells = {name: _cells(name, slow, table) for name, slow in slow_downs(table, idle).items()}
    return {**cells, "met": all(cell["met"] for row in cells.values() for cell in row.values())}


def _cells(name: str, slow: FloatArray, table: Measured) -> dict[str, dict[str, float | bool | None]]:
    endless = ~table.completed | (table.tokens == 0)
    values = np.where(endless, np.inf, slow)[table.counted]
    values = values[~np.isnan(values)]
    row: dict[str, dict[str, float | bool | None]] = {}
    for percent, limit in zip(PERCENTILES, LIMITS[name], strict=True):
        value, met = None, bool(table.counted.any())
        if len(values):
            with np.errstate(invalid="ignore"):  # between two infinities numpy finds NaN
                value = number(np.percentile(values, percent))
            met = value is not None and value <= limit
        row[f"p{percent}"] = {"value": value, "limit": limit, "met": met}
    return row
