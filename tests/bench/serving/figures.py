"""From the records of a part to its figures, and from figures to what is shown. Pure.

A figure is known by its heading, which ends with its unit: rates (tok/s) are better when high, all else when low, and
what is in NEUTRAL is neither. Times between tokens (TBT) lie between events that brought tokens: tokens that came
together came at one moment. Rates count tokens as the server did, where it said how many they were.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadgen.record import Outcome, Record

OTHERS, KV = "cores of others", "KV tokens"
NEUTRAL = (OTHERS, KV)
SAME = 0.01  # ratios this close to 1 have no direction

Figures = dict[str, float | None]  # by heading
Window = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything. Lengths are in tokens; `crowds` are (streams at a time, requests in all)."""

    prompts: tuple[int, ...] = (32, 128, 512, 1024)
    prompt_times: int = 5
    prompt_output: int = 8
    lone: tuple[int, int] = (32, 128)
    lone_times: int = 3
    crowds: tuple[tuple[int, int], ...] = ((4, 12), (16, 32))
    crowd: tuple[int, int] = (256, 64)
    streams: int = 4
    stream: tuple[int, int] = (32, 1024)
    long_prompt: int = 1024
    every_s: float = 4.0
    quiet_s: float = 8.0
    disturbed_s: float = 24.0

    @property
    def quiet_title(self) -> str:
        return f"{self.streams} streams, nothing else ({self.quiet_s:g} s)"

    @property
    def disturbed_title(self) -> str:
        return (
            f"{self.streams} streams, a prompt of {self.long_prompt} tokens every {self.every_s:g} s "
            f"({self.disturbed_s:g} s)"
        )


QUICK = Plan(
    prompts=(8, 16), prompt_times=1, prompt_output=2, lone=(8, 8), lone_times=1, crowds=((2, 3),), crowd=(8, 4),
    streams=2, stream=(8, 64), long_prompt=16, every_s=0.2, quiet_s=0.3, disturbed_s=0.6,
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Taken:
    """What a part brought. Times are seconds on one clock; `until_s`: when streams without an end were stopped."""

    groups: dict[str, list[Record]] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    until_s: float = 0.0

    def add(self, group: str, record: Record) -> Record:
        self.groups.setdefault(group, []).append(record)
        return record


# ---- of one request ----


def fault(record: Record) -> str | None:
    """Why it is not what was asked for: exactly its tokens, and an end. A stream that we stopped has no fault."""
    if record.error is not None:
        return record.error
    if record.outcome is not Outcome.COMPLETED:
        return None
    if record.usage_prompt_tokens not in (None, record.prompt_tokens):
        return f"its prompt had {record.usage_prompt_tokens} tokens instead of {record.prompt_tokens}"
    if tokens(record) != record.output_tokens:
        counted = "" if record.usage_output_tokens is not None else " by the events, without usage"
        return f"{tokens(record)} tokens instead of {record.output_tokens}{counted}"
    return None


def tokens(record: Record) -> int:
    """By the server's own count if it gave one, else what its events brought."""
    return record.tokens if record.usage_output_tokens is None else record.usage_output_tokens


def ttft_s(record: Record) -> float | None:
    """From sending to the first token."""
    if record.sent_s is None or not record.event_s:
        return None
    return record.event_s[0] - record.sent_s


def gaps_s(record: Record) -> list[float]:
    return [b - a for a, b in itertools.pairwise(record.event_s)]


def rate(record: Record) -> float | None:
    """Tokens per second after the first event."""
    if len(record.event_s) < 2:
        return None
    return (tokens(record) - record.event_tokens[0]) / (record.event_s[-1] - record.event_s[0])


def gaps_over(record: Record, window: Window, until_s: float) -> list[float]:
    """Every gap that touches the window, whole. A stream without an end that brought nothing more before `until_s` has
    a gap up to there: a stall does not vanish by lasting."""
    moments = list(record.event_s)
    if moments and record.done_s is None and record.error is None:
        moments.append(until_s)
    return [b - a for a, b in itertools.pairwise(moments) if b > window[0] and a < window[1]]


def tokens_in(record: Record, window: Window) -> int:
    pairs = zip(record.event_s, record.event_tokens, strict=True)
    return sum(count for at_s, count in pairs if window[0] <= at_s < window[1])


# ---- of a part ----


def percentile(values: Iterable[float | None], percent: float) -> float | None:
    """With linear interpolation; None without values."""
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percent)) if known else None


def median(values: Iterable[float | None]) -> float | None:
    return percentile(values, 50)


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def of_alone(taken: Taken, plan: Plan) -> dict[str, Figures]:
    lone = taken.groups.get("lone", [])
    gaps = [gap for record in lone for gap in gaps_s(record)]
    first = {
        f"TTFT {length} ms": ms(median(ttft_s(record) for record in taken.groups.get(f"prompt {length}", [])))
        for length in plan.prompts
    }
    rest = {
        "decode tok/s": median(rate(record) for record in lone),
        "TBT P50 ms": ms(percentile(gaps, 50)),
        "TBT P99 ms": ms(percentile(gaps, 99)),
    }
    return {"alone": {**first, **rest}}


def of_streams(taken: Taken, plan: Plan) -> dict[str, Figures]:
    return {crowd_title(*crowd): _of_crowd(taken.groups.get(f"crowd {crowd[0]}", [])) for crowd in plan.crowds}


def crowd_title(streams: int, requests: int) -> str:
    return f"{streams} streams, {requests} requests"


def _of_crowd(records: Sequence[Record]) -> Figures:
    gaps = [gap for record in records for gap in gaps_s(record)]
    first = [ttft_s(record) for record in records]
    began = [record.sent_s for record in records if record.sent_s is not None]
    ended = [record.event_s[-1] for record in records if record.event_s]
    span_s = max(ended) - min(began) if began and ended else None
    return {
        "output tok/s": over(float(sum(tokens(record) for record in records)), span_s),
        "TTFT P50 ms": ms(percentile(first, 50)),
        "TTFT P99 ms": ms(percentile(first, 99)),
        "TBT P50 ms": ms(percentile(gaps, 50)),
        "TBT P99 ms": ms(percentile(gaps, 99)),
    }


def of_interference(taken: Taken, plan: Plan) -> dict[str, Figures]:
    quiet, disturbed = (_of_window(taken, name) for name in ("quiet", "disturbed"))
    disturbed["TTFT of the prompts P50 ms"] = ms(median(ttft_s(record) for record in taken.groups.get("prompts", [])))
    disturbed["P99 / P99 alone"] = over(disturbed["TBT P99 ms"], quiet["TBT P99 ms"])
    return {plan.quiet_title: quiet, plan.disturbed_title: disturbed}


def _of_window(taken: Taken, name: str) -> Figures:
    window, streams = taken.windows[name], taken.groups.get("streams", [])
    gaps = [gap for record in streams for gap in gaps_over(record, window, taken.until_s)]
    return {
        "TBT P50 ms": ms(percentile(gaps, 50)),
        "TBT P99 ms": ms(percentile(gaps, 99)),
        "TBT max ms": ms(percentile(gaps, 100)),
        "decode tok/s": sum(tokens_in(record, window) for record in streams) / (window[1] - window[0]),
    }


PARTS = {"alone": of_alone, "streams": of_streams, "interference": of_interference}


def faults(taken: Taken) -> list[str]:
    return [why for records in taken.groups.values() for record in records if (why := fault(record))]


def tokens_per_event(takens: Iterable[Taken]) -> float | None:
    """Over all answers that were whole: 1 where TBT is between tokens indeed."""
    whole = [r for t in takens for records in t.groups.values() for r in records if r.done_s and r.event_s]
    return over(float(sum(map(tokens, whole))), float(sum(len(record.event_s) for record in whole)))


# ---- of all rounds ----


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of each heading, over the rounds that have a value."""
    headings = dict.fromkeys(heading for one in rounds for heading in one)
    return {heading: _middle([one.get(heading) for one in rounds]) for heading in headings}


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def high_is_better(heading: str) -> bool | None:
    """None: neither is."""
    return None if heading in NEUTRAL else heading.endswith("tok/s")


def best(heading: str, rows: Mapping[str, Figures]) -> str | None:
    """The row with the best value under this heading."""
    high = high_is_better(heading)
    known = {name: value for name, row in rows.items() if (value := row.get(heading)) is not None}
    if high is None or not known:
        return None
    return (max if high else min)(known, key=lambda name: known[name])


def verdict(ratio: float, heading: str) -> str:
    """Of ours over theirs."""
    high = high_is_better(heading)
    if high is None or abs(ratio - 1) <= SAME:
        return "same" if high is not None else ""
    return "better" if (ratio > 1) == high else "worse"
