"""A run as arrays, float64 seconds: one row per scheduled request, in the order of the schedule.

Latencies count from `due_s`. Definitions (t: arrivals of events with tokens, n: tokens received):

    ttft        t[0] - due            ttft_from_send  t[0] - sent
    gap (itl)   t[j] - t[j-1], j >= 1, pooled over the requests
    second      the first gap         max_gap         the largest gap of a request
    gap_p99     the P99 of one request's gaps
    tpot        (t[-1] - t[0]) / (n - 1), n >= 2      e2e   done - due

Every list of latencies holds *completed* requests that were due inside the window (both ends belong to it), and nothing
of the others: what a failed or rejected request showed before it ended is no latency, it is a miss in the attainment.
Rates, on the contrary, count what happened inside the window, whoever it belonged to.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from loadgen.record import Outcome, Record, Run

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MEASURES = ("ttft_s", "ttft_from_send_s", "itl_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """NaN: undefined for this request. `present`: it has a record; `counted`: it was due inside the window (never so
    without a record, because then nobody knows when it was due). `gap_owner[k]` is the row that gap k belongs to."""

    window_s: tuple[float, float]
    present: BoolArray
    counted: BoolArray
    completed: BoolArray
    due_s: FloatArray
    sent_s: FloatArray
    first_s: FloatArray
    last_s: FloatArray
    done_s: FloatArray
    prompt_tokens: IntArray
    tokens: IntArray
    ttft_s: FloatArray
    ttft_from_send_s: FloatArray
    tpot_s: FloatArray
    second_token_s: FloatArray
    max_gap_s: FloatArray
    e2e_s: FloatArray
    gap_s: FloatArray
    gap_owner: IntArray
    window_tokens: IntArray  # of each request, those that arrived inside the window

    @property
    def requests(self) -> int:
        return len(self.due_s)

    @property
    def window_length_s(self) -> float:
        return self.window_s[1] - self.window_s[0]

    @property
    def gap_p99_s(self) -> FloatArray:
        """The P99 of each request's own gaps, with linear interpolation; of few gaps it is near the largest. Worked out
        each time it is asked for: all gaps are sorted, and most runs are judged without."""
        gaps = np.bincount(self.gap_owner, minlength=self.requests)
        rows, ends = np.flatnonzero(gaps), np.cumsum(gaps)
        found = np.full(self.requests, np.nan)
        for row, start, end in zip(rows.tolist(), (ends - gaps)[rows].tolist(), ends[rows].tolist(), strict=True):
            own = np.sort(self.gap_s[start:end])
            place = 0.99 * (end - start - 1)
            low, high = math.floor(place), math.ceil(place)
            found[row] = own[low] + (own[high] - own[low]) * (place - low)
        return found

    def inside(self, at_s: FloatArray) -> BoolArray:
        return _inside(self.window_s, at_s)

    def sample(self, measure: str) -> tuple[FloatArray, IntArray]:
        """The values that the statistics of one of MEASURES are made of, and the row of each."""
        listed = self.counted & self.completed
        if measure == "itl_s":
            keep = listed[self.gap_owner] & np.isfinite(self.gap_s)
            return self.gap_s[keep], self.gap_owner[keep]
        values: FloatArray = getattr(self, measure)
        rows = np.flatnonzero(listed & np.isfinite(values))
        return values[rows], rows


def measured(run: Run) -> Measured:
    """Of doubled records the first counts; records of unknown requests are left out (the gates name both)."""
    rows = _rows(run)
    size = len(rows)
    due_s, sent_s, done_s = (
        _column(r.due_s for r in rows),
        _column(r.sent_s for r in rows),
        _column(r.done_s for r in rows),
    )
    events = np.fromiter((len(r.event_s) for r in rows), np.int64, size)
    assert all(len(r.event_s) == len(r.event_tokens) for r in rows), "event_s and event_tokens differ in length"
    event_s = np.fromiter(chain.from_iterable(r.event_s for r in rows), np.float64, int(events.sum()))
    event_tokens = np.fromiter(chain.from_iterable(r.event_tokens for r in rows), np.int64, len(event_s))
    owner = np.repeat(np.arange(size), events)
    tokens = _total(event_tokens, events)
    starts = np.cumsum(events) - events
    first_s = _pick(event_s, starts, events >= 1)
    last_s = _pick(event_s, starts + events - 1, events >= 1)
    same = owner[1:] == owner[:-1]
    gap_s = np.diff(event_s)[same]
    return Measured(
        window_s=run.window_s,
        present=np.fromiter((r.index >= 0 for r in rows), np.bool_, size),
        counted=_inside(run.window_s, due_s),
        completed=np.fromiter((r.outcome is Outcome.COMPLETED for r in rows), np.bool_, size),
        due_s=due_s,
        sent_s=sent_s,
        first_s=first_s,
        last_s=last_s,
        done_s=done_s,
        prompt_tokens=np.fromiter((r.prompt_tokens for r in rows), np.int64, size),
        tokens=tokens,
        ttft_s=first_s - due_s,
        ttft_from_send_s=first_s - sent_s,
        tpot_s=np.divide(last_s - first_s, tokens - 1, out=np.full(size, np.nan), where=tokens >= 2),
        second_token_s=_pick(event_s, starts + 1, events >= 2) - first_s,
        max_gap_s=_largest(gap_s, events - 1),
        e2e_s=done_s - due_s,
        gap_s=gap_s,
        gap_owner=owner[1:][same],
        window_tokens=_total(event_tokens * _inside(run.window_s, event_s), events),
    )


def _rows(run: Run) -> list[Record]:
    """One per scheduled request; an empty one, of index -1 and due nowhere, for a request without a record."""
    known: dict[int, Record] = {}
    for record in run.records:
        known.setdefault(record.index, record)
    nobody = Record(index=-1, prompt_tokens=0, output_tokens=0, due_s=float("nan"))
    return [known.get(index, nobody) for index in range(run.scheduled)]


def _column(values: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _inside(window_s: tuple[float, float], at_s: FloatArray) -> BoolArray:
    return (at_s >= window_s[0]) & (at_s <= window_s[1])


def _pick(values: FloatArray, at: IntArray, where: BoolArray) -> FloatArray:
    picked = np.full(len(at), np.nan)
    picked[where] = values[at[where]]
    return picked


def _total(amounts: IntArray, events: IntArray) -> IntArray:
    """Of each request's events, which lie one request after the other."""
    upto = np.concatenate(([0], np.cumsum(amounts)))
    ends = np.cumsum(events)
    totals: IntArray = upto[ends] - upto[ends - events]
    return totals


def _largest(gap_s: FloatArray, gaps: IntArray) -> FloatArray:
    """The largest of each request's gaps; they lie one request after the other."""
    largest = np.full(len(gaps), np.nan)
    some = gaps >= 1
    if some.any():
        largest[some] = np.maximum.reduceat(gap_s, (np.cumsum(gaps[some]) - gaps[some]))
    return largest
