"""What a run was like over time: load offered and served, latencies, requests in the system.

Runs of one target under one schedule are laid over each other: rates and counts are means over runs, percentiles are
of the pooled samples. Times are seconds since the start of the run.
"""

import numpy as np

from loadgen.measure.latencies import FloatArray, Measured
from loadgen.report.groups import Group, last_s
from loadgen.report.look import NEUTRAL, Figure, Trace, axis, layout, line, seconds_axis, shaded

BINS_MOST = 60
WIDTHS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
INSTANTS = 300
TIME_TITLE = "time since the start (s)"


def timeline_figures(groups: list[Group]) -> list[Figure]:
    groups = [group for group in groups if group.tables]
    end_s = max((_end_s(table) for group in groups for table in group.tables), default=0.0)
    if end_s <= 0:
        return []
    edges_s = _edges(end_s)
    outside = _outside(groups, end_s)
    figures = [
        _rates(groups, edges_s),
        _ttft(groups, edges_s),
        _gaps(groups, edges_s),
        _in_system(groups, end_s),
        *_queues(groups),
    ]
    for figure in figures:
        figure.layout["shapes"] = outside
        figure.layout["xaxis"]["range"] = [0, end_s]
    return figures


def percentiles_in_bins(
    at_s: FloatArray, values: FloatArray, edges_s: FloatArray, percentiles: tuple[float, ...]
) -> FloatArray:
    """One row per percentile, one column per bin; NaN in a bin without samples."""
    keep = ~np.isnan(at_s) & ~np.isnan(values)
    order = np.argsort(at_s[keep], kind="stable")
    parts = np.split(values[keep][order], np.searchsorted(at_s[keep][order], edges_s))[1:-1]
    columns = [np.percentile(part, percentiles) if part.size else np.full(len(percentiles), np.nan) for part in parts]
    return np.array(columns, dtype=np.float64).reshape(len(parts), len(percentiles)).T


def present_at(instants_s: FloatArray, start_s: FloatArray, end_s: FloatArray) -> FloatArray:
    """How many have started and not ended, at each instant; who lacks one of the two never starts."""
    known = ~np.isnan(start_s) & ~np.isnan(end_s)
    started = np.searchsorted(np.sort(start_s[known]), instants_s, side="right")
    ended = np.searchsorted(np.sort(end_s[known]), instants_s, side="right")
    return (started - ended).astype(np.float64)


def _end_s(table: Measured) -> float:
    known = np.concatenate([table.due_s, last_s(table)])
    return float(np.max(known, initial=0.0, where=np.isfinite(known)))


def _edges(end_s: float) -> FloatArray:
    width_s = next((width for width in WIDTHS_S if end_s / width <= BINS_MOST), end_s / BINS_MOST)
    return np.arange(np.ceil(end_s / width_s) + 1) * width_s


def _centres(edges_s: FloatArray) -> FloatArray:
    return (edges_s[:-1] + edges_s[1:]) / 2


def _per_second(at_s: FloatArray, edges_s: FloatArray, runs: int) -> FloatArray:
    counts, _ = np.histogram(at_s[np.isfinite(at_s)], edges_s)
    return counts / np.diff(edges_s) / runs


def _rates(groups: list[Group], edges_s: FloatArray) -> Figure:
    """What was due is drawn once if it was the same for all; where users wait for answers it is not."""
    due = [_per_second(group.pooled("due_s"), edges_s, len(group.tables)) for group in groups]
    same = all(np.array_equal(due[0], other) for other in due)
    data: list[Trace] = []
    for group, rate in zip(groups[:1] if same else groups, due, strict=False):
        label = "" if same else group.label
        data.append(line(f"due{label}", _centres(edges_s), rate, NEUTRAL, dash="dot"))
    for group in groups:
        rate = _per_second(group.pooled("done_s")[group.flags("completed")], edges_s, len(group.tables))
        data.append(line(f"completed{group.label}", _centres(edges_s), rate, group.colour))
    return Figure(
        name="timeline-rates",
        title="Load offered and served",
        caption=f"Requests due and requests completed per second, in bins of {edges_s[1]:g} s.{_means(groups)} "
        "Shaded here and below: outside the measured window.",
        data=data,
        layout=layout(axis(TIME_TITLE), axis("requests per second", rangemode="tozero")),
    )


def _ttft(groups: list[Group], edges_s: FloatArray) -> Figure:
    data: list[Trace] = []
    for group in groups:
        completed = group.flags("completed")
        data += _median_and_p99(group, group.pooled("due_s")[completed], group.pooled("ttft_s")[completed], edges_s)
    return Figure(
        name="timeline-ttft",
        title="Time to first token over time",
        caption=f"Completed requests, by when they were due, in bins of {edges_s[1]:g} s. The P99 of a bin with few "
        "requests is close to its largest value.",
        data=data,
        layout=layout(axis(TIME_TITLE), seconds_axis("TTFT")),
    )


def _gaps(groups: list[Group], edges_s: FloatArray) -> Figure:
    data: list[Trace] = []
    for group in groups:
        at_s = np.concatenate([_gap_ends_s(table) for table in group.tables])
        data += _median_and_p99(group, at_s, group.pooled("gap_s"), edges_s)
    return Figure(
        name="timeline-gaps",
        title="Gaps between tokens (ITL) over time",
        caption=f"All gaps, by when the later token came, in bins of {edges_s[1]:g} s.",
        data=data,
        layout=layout(axis(TIME_TITLE), seconds_axis("gap")),
    )


def _median_and_p99(group: Group, at_s: FloatArray, values_s: FloatArray, edges_s: FloatArray) -> list[Trace]:
    rows = percentiles_in_bins(at_s, values_s, edges_s, (50, 99))
    words = (("median", "solid"), ("P99", "dot"))
    more = {"mode": "lines+markers", "marker": {"size": 4}}  # a bin between two empty ones has no line
    return [
        line(f"{word}{group.label}", _centres(edges_s), row, group.colour, dash=dash, **more)
        for row, (word, dash) in zip(rows, words, strict=True)
    ]


def _gap_ends_s(table: Measured) -> FloatArray:
    """Gaps of a request follow each other from its first event on."""
    if not len(table.gap_s):
        return table.gap_s
    so_far_s = np.cumsum(table.gap_s)
    begins = np.flatnonzero(np.diff(table.gap_owner, prepend=-1))
    before_s = (so_far_s - table.gap_s)[begins]
    counts = np.diff(np.append(begins, len(table.gap_s)))
    ends_s: FloatArray = table.first_s[table.gap_owner] + so_far_s - np.repeat(before_s, counts)
    return ends_s


def _in_system(groups: list[Group], end_s: float) -> Figure:
    instants_s = np.linspace(0, end_s, INSTANTS)
    data: list[Trace] = []
    for group in groups:
        flying = np.mean([present_at(instants_s, t.sent_s, last_s(t)) for t in group.tables], axis=0)
        waiting = np.mean([_waiting(instants_s, t) for t in group.tables], axis=0)
        data += [
            line(f"in flight{group.label}", instants_s, flying, group.colour),
            line(f"no token yet{group.label}", instants_s, waiting, group.colour, dash="dot"),
        ]
    return Figure(
        name="timeline-in-system",
        title="Requests in the system",
        caption="Seen by the client. In flight: sent and not ended; a failed request counts until its last sign of "
        f"life. No token yet: due, and waiting for the first.{_means(groups)}",
        data=data,
        layout=layout(axis(TIME_TITLE), axis("requests", rangemode="tozero")),
    )


def _waiting(instants_s: FloatArray, table: Measured) -> FloatArray:
    until_s = np.where(np.isnan(table.first_s), last_s(table), table.first_s)
    return present_at(instants_s, table.due_s, until_s)


def _queues(groups: list[Group]) -> list[Figure]:
    data: list[Trace] = []
    for group in groups:
        queues = next((run.queues for run in group.runs if run.queues), [])
        at_s = np.array([sample.at_s for sample in queues])
        for word, dash in (("running", "solid"), ("waiting", "dot")):
            counts = np.array([getattr(sample, word) for sample in queues])
            data += [line(f"{word}{group.label}", at_s, counts, group.colour, dash=dash)] if queues else []
    figure = Figure(
        name="timeline-queues",
        title="Requests in the server",
        caption="What the server's own metrics say, in the first run that has them.",
        data=data,
        layout=layout(axis(TIME_TITLE), axis("requests", rangemode="tozero")),
    )
    return [figure] if data else []


def _outside(groups: list[Group], end_s: float) -> list[dict[str, object]]:
    start_s, stop_s = groups[0].runs[0].window_s
    return [shaded(a, b) for a, b in ((0.0, start_s), (stop_s, end_s)) if b > a]


def _means(groups: list[Group]) -> str:
    return " Means over runs." if any(len(group.tables) > 1 for group in groups) else ""
