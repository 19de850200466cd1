"""When the figures of a run may not be used: the client was late or busy, records are missing or contradict each other
or the server, or the server did other work than it was asked to.

Each reason is a sentence with the figure and the limit. A run without reasons is valid.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from loadgen.measure.latencies import FloatArray, Measured, measured
from loadgen.record import Outcome, Record, Run

INVALID = 3  # exit code of a command whose result must not be trusted
MOST_LAG_P99_S = 0.005
MOST_LAG_S = 0.050
MOST_CPU_SHARE = 0.70
EARLY_S = 0.001  # timers of event loops count whole milliseconds and may fire early by that
NAMED = 5  # ids in a sentence


def invalid_reasons(run: Run, *, count_tolerance: float = 0.0) -> list[str]:
    """`count_tolerance`: the share of completed requests whose token counts may differ."""
    return reasons(run, measured(run), count_tolerance=count_tolerance)


def reasons(run: Run, table: Measured, *, count_tolerance: float = 0.0) -> list[str]:
    return [
        *run.invalid_reasons,
        *_nothing(run, table),
        *_lag(send_lag_s(table)),
        *_cpu(run),
        *_ids(run),
        *_counts(run, count_tolerance),
        *_times(table),
    ]


def remarks(run: Run) -> list[str]:
    """What a reader should know of a run and that does not spoil it."""
    completed = _completed(run)
    said = []
    if completed and not any(_has_usage(record) for record in completed):
        said.append("the server reports no usage: token counts are those of the events alone")
    unsent = sum(record.sent_s is None for record in run.records)
    if unsent:
        said.append(f"{unsent} of {run.scheduled} requests were never sent; they count as misses")
    return said


def send_lag_s(table: Measured) -> FloatArray:
    """Of every request that was sent, warm-up included: it shapes the load that the window sees."""
    lag_s = table.sent_s - table.due_s
    return lag_s[np.isfinite(lag_s)]


def _nothing(run: Run, table: Measured) -> Iterator[str]:
    if run.scheduled == 0:
        yield "no request was scheduled, at least 1 is needed"
    elif not table.completed.any():
        yield f"no request completed of {run.scheduled} scheduled, at least 1 is needed"
    elif not table.counted.any():
        yield "no request was due inside the window, at least 1 is needed"
    if not 0 < table.window_length_s < np.inf:
        yield f"the window lasts {table.window_length_s:g} s, more than 0 s are needed"


def _lag(lag_s: FloatArray) -> Iterator[str]:
    if len(lag_s) == 0:
        return
    p99_s, most_s = np.percentile(lag_s, 99), lag_s.max()
    if p99_s > MOST_LAG_P99_S:
        yield f"send lag p99 is {p99_s * 1e3:.1f} ms, the limit is {MOST_LAG_P99_S * 1e3:.0f} ms"
    if most_s > MOST_LAG_S:
        yield f"send lag max is {most_s * 1e3:.1f} ms, the limit is {MOST_LAG_S * 1e3:.0f} ms"


def _cpu(run: Run) -> Iterator[str]:
    for process, client in enumerate(run.clients):
        if not client.cpu_share <= MOST_CPU_SHARE:
            used, limit = client.cpu_share * 100, MOST_CPU_SHARE * 100
            yield f"client process {process} used {used:.1f} % of a core, the limit is {limit:.0f} %"


def _ids(run: Run) -> Iterator[str]:
    seen = Counter(record.index for record in run.records)
    missing = [index for index in range(run.scheduled) if index not in seen]
    double = sorted(index for index, times in seen.items() if times > 1)
    unknown = sorted(index for index in seen if not 0 <= index < run.scheduled)
    if missing:
        yield f"{len(missing)} of {run.scheduled} requests have no record, each needs one: {_named(missing)}"
    if double:
        yield f"{len(double)} of {run.scheduled} requests have several records, 1 is allowed: {_named(double)}"
    if unknown:
        yield f"{len(unknown)} records are of requests outside 0 to {run.scheduled - 1}: {_named(unknown)}"


def _counts(run: Run, tolerance: float) -> Iterator[str]:
    """Per request, because errors of both signs would cancel in a sum."""
    completed = _completed(run)
    lengths = [(r.index, r.output_tokens, r.tokens) for r in completed]
    yield from _differ("output tokens asked for and received", lengths, tolerance)
    if any(_has_usage(record) for record in completed):
        outputs = [(r.index, r.tokens, r.usage_output_tokens) for r in completed]
        yield from _differ("output tokens received and reported by the server", outputs, tolerance)
        prompts = [(r.index, r.prompt_tokens, r.usage_prompt_tokens) for r in completed]
        yield from _differ("prompt tokens asked for and reported by the server", prompts, tolerance)


def _differ(what: str, counts: Sequence[tuple[int, int, int | None]], tolerance: float) -> Iterator[str]:
    """`counts`: index, and what should be equal; None, a usage that is missing where others have one, is not."""
    differ = sorted(count[0] for count in counts if count[1] != count[2])
    if len(differ) > tolerance * len(counts):
        left, right = next(count[1:] for count in counts if count[0] == differ[0] and count[1] != count[2])
        allowed = f"{tolerance * 100:g} % of them may"
        first = f"the first is request {differ[0]} with {left} and {'none' if right is None else right}"
        yield f"{what} differ in {len(differ)} of {len(counts)} completed requests, {allowed}; {first}"


def _times(table: Measured) -> Iterator[str]:
    """A comparison with NaN is false, so each is put such that a time that is no number shows."""
    answered = ~np.isnan(table.first_s) | (table.tokens > 0)
    backwards = table.present & ~np.isfinite(table.due_s)
    backwards |= table.sent_s < table.due_s - EARLY_S
    backwards |= answered & ~(table.first_s >= table.sent_s)
    backwards |= table.done_s < np.fmax(table.last_s, table.sent_s)
    backwards |= table.completed & ~(table.done_s >= table.sent_s)
    backwards[table.gap_owner[~(table.gap_s >= 0)]] = True
    found = np.flatnonzero(backwards).tolist()
    if found:
        yield f"times run backwards or are missing in {len(found)} requests, 0 may: {_named(found)}"


def _completed(run: Run) -> list[Record]:
    return [record for record in run.records if record.outcome is Outcome.COMPLETED]


def _has_usage(record: Record) -> bool:
    return record.usage_output_tokens is not None or record.usage_prompt_tokens is not None


def _named(ids: list[int]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(str(index) for index in ids[:NAMED]) + more
