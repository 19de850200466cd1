"""How latencies are distributed, and how the first token's depends on the length of the prompt."""

from typing import Any

import numpy as np

from loadgen.measure.latencies import FloatArray
from loadgen.measure.slo import COLUMNS, Slo
from loadgen.report.groups import Group
from loadgen.report.look import (
    SMALLEST_S,
    Figure,
    Trace,
    axis,
    digits,
    layout,
    limit_line,
    line,
    log_seconds_axis,
    log_tokens_axis,
    thinned,
)

CDF_POINTS = 500
TAIL_POINTS = 100  # of them for the slowest 1 %
SCATTER_POINTS = 5000

_DISTRIBUTIONS = (
    ("ttft_s", "Time to first token (TTFT)", "completed requests"),
    ("itl_s", "Gaps between tokens (ITL)", "gaps of completed requests"),
    ("tpot_s", "Time per output token (TPOT)", "completed requests with two or more tokens"),
    ("e2e_s", "End-to-end latency (E2EL)", "completed requests"),
)


def distribution_figures(groups: list[Group], slo: Slo | None) -> list[Figure]:
    """The limits of `slo` are drawn where it has one."""
    limits_s = {} if slo is None else {COLUMNS[key]: limit_s for key, limit_s in slo.limits}
    groups = [group for group in groups if group.tables]
    figures = [_cdf(measure, title, of, groups, limits_s.get(measure)) for measure, title, of in _DISTRIBUTIONS]
    return [figure for figure in [*figures, _scatter(groups, limits_s.get("ttft_s"))] if figure.data]


def cdf(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values and the share (%) of samples up to them, at most CDF_POINTS, a fifth of them for the slowest percent."""
    if values.size <= CDF_POINTS:
        return np.sort(values), np.arange(1, values.size + 1) / values.size * 100
    body = np.linspace(0, 99, CDF_POINTS - TAIL_POINTS, endpoint=False)
    shares = np.concatenate([body, np.linspace(99, 100, TAIL_POINTS)])
    return np.percentile(values, shares), shares


def _cdf(measure: str, title: str, of: str, groups: list[Group], limit_s: float | None) -> Figure:
    data: list[Trace] = []
    counts = []
    for group in groups:
        values_s = np.maximum(group.sample(measure), SMALLEST_S)
        if values_s.size:
            data.append(line(group.name, *cdf(values_s), group.colour))
            counts.append(f"{values_s.size:,}{group.label}")
    dotted = "" if limit_s is None else f" Dotted: the SLO, {limit_s:g} s."
    drawn = CDF_POINTS if any(group.sample(measure).size > CDF_POINTS for group in groups) else None
    points = f"; a line has {drawn} points" if drawn else ""
    return Figure(
        name=f"cdf-{measure.removesuffix('_s')}",
        title=title,
        caption=f"Share of {of} that took at most so long. Number: {', '.join(counts)}{points}.{dotted}",
        data=data,
        layout=layout(
            log_seconds_axis("time, logarithmic", _spanned(data, "x", limit_s)),
            axis("share", ticksuffix=" %", range=[0, 101]),
            [] if limit_s is None else [limit_line(limit_s, upright=True)],
        )
        | {"showlegend": len(groups) > 1},
    )


def _scatter(groups: list[Group], limit_s: float | None) -> Figure:
    total = sum(int(group.flags("counted").sum()) for group in groups)
    data: list[Trace] = []
    shown = 0
    ttft_s = np.concatenate([[SMALLEST_S], *(group.pooled("ttft_s") for group in groups)])
    above_s = float(np.nanmax(ttft_s)) * 1.5
    for group in groups:
        counted = np.flatnonzero(group.flags("counted"))
        at = counted[thinned(len(counted), SCATTER_POINTS * len(counted) // max(1, total))]
        shown += len(at)
        data += _points_of(group, at, above_s)
    dotted = "" if limit_s is None else f" Dotted: the SLO, {limit_s:g} s."
    return Figure(
        name="scatter-ttft",
        title="Time to first token by prompt length",
        caption=f"A point a request: {shown:,} of {total:,} due in the window. Crosses failed or were rejected; those "
        f"without any token stand above all others.{dotted}",
        data=data if shown else [],
        layout=layout(
            log_tokens_axis("prompt (tokens), logarithmic", _spanned(data, "x", None)),
            log_seconds_axis("TTFT, logarithmic", _spanned(data, "y", limit_s)),
            [] if limit_s is None else [limit_line(limit_s, upright=False)],
        ),
    )


def _points_of(group: Group, at: np.ndarray[tuple[int], np.dtype[np.intp]], above_s: float) -> list[Trace]:
    tokens, ttft_s = group.pooled("prompt_tokens")[at].astype(np.float64), group.pooled("ttft_s")[at]
    completed = group.flags("completed")[at]
    failed_s = np.where(np.isnan(ttft_s), above_s, ttft_s)[~completed]
    crosses = _points(f"failed{group.label}", tokens[~completed], failed_s, group.colour, "x-thin-open", 8, 1.0)
    dots = _points(f"completed{group.label}", tokens[completed], ttft_s[completed], group.colour, "circle", 5, 0.5)
    return [dots] if completed.all() else [dots, crosses]


def _spanned(data: list[Trace], name: str, limit: float | None) -> list[float]:
    """All values that an axis must show."""
    values = [value for trace in data for value in trace[name] if value is not None]
    return values if limit is None else [*values, limit]


def _points(
    name: str, tokens: FloatArray, ttft_s: FloatArray, paint: str, symbol: str, size_px: int, opacity: float
) -> Trace:
    marker: dict[str, Any] = {"color": paint, "symbol": symbol, "size": size_px, "opacity": opacity}
    if symbol.endswith("-open"):
        marker["line"] = {"width": 2}
    x, y = digits(tokens), digits(np.maximum(ttft_s, SMALLEST_S))
    return {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": marker}
