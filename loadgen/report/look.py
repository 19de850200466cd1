"""What all figures of a page share: colours, axes, how numbers are written, and how much is drawn.

A figure is plain data for Plotly. Colours tell targets apart, for colour-blind people too, on light and on dark paper.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.measure.latencies import FloatArray
from loadgen.report.measures import time_text

Trace = dict[str, Any]

PALETTE = ("#2f86d1", "#e0701a", "#1a9e77", "#c45fa0", "#b08b00", "#7d6bd6")
NEUTRAL = "#8a8f98"
HEIGHT_PX = 340
LEAST_TICKS = 3
TICK_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0))
SMALLEST_S = 1e-5  # what a logarithmic axis shows of a time of zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`caption`: what is drawn, of how many, and what was left out; plain text."""

    name: str  # an HTML id
    title: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]


def colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def digits(values: Iterable[float] | FloatArray, count: int = 5) -> list[float | None]:
    """So many significant digits; NaN becomes None, a hole in the line."""
    return [None if value != value else float(f"{value:.{count}g}") for value in values]


def line(name: str, x: FloatArray, y: FloatArray, paint: str, *, dash: str = "solid", **more: Any) -> Trace:
    style = {"color": paint, "dash": dash, "width": 2}
    return {"type": "scatter", "mode": "lines", "name": name, "x": digits(x), "y": digits(y), "line": style, **more}


def layout(x: dict[str, Any], y: dict[str, Any], shapes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Legends stand below, so that narrow screens keep their width for the plot."""
    return {
        "height": HEIGHT_PX,
        "margin": {"l": 58, "r": 14, "t": 34, "b": 40},
        "xaxis": {"automargin": True, "zeroline": False} | x,
        "yaxis": {"automargin": True, "zeroline": False} | y,
        "legend": {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"},
        "showlegend": True,
        "hoverlabel": {"namelength": -1},
        "shapes": list(shapes),
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 8}, **more}


def seconds_axis(title: str) -> dict[str, Any]:
    """From zero, with ticks such as 500ms and 1s."""
    return axis(title, tickformat="~s", ticksuffix="s", hoverformat=".3s", rangemode="tozero")


def log_seconds_axis(title: str, values_s: Iterable[float]) -> dict[str, Any]:
    """Covers the values, which are above zero."""
    return {**_log_axis(title, values_s, time_text), "tickformat": "~s", "ticksuffix": "s", "hoverformat": ".3s"}


def log_tokens_axis(title: str, values: Iterable[float]) -> dict[str, Any]:
    return _log_axis(title, values, lambda tokens: f"{tokens:,.0f}")


def _log_axis(title: str, values: Iterable[float], text: Callable[[float], str]) -> dict[str, Any]:
    known = [value for value in values if value == value]
    low, high = min(known, default=1.0) / 1.1, max(known, default=1.0) * 1.1
    ticks = log_ticks(low, high)
    edges = [math.log10(low), math.log10(high)]
    return axis(title, type="log", range=edges, tickvals=ticks, ticktext=[text(tick) for tick in ticks])


def log_ticks(low: float, high: float) -> list[float]:
    """Whole decades where they are enough, else some steps within each, and on short axes even steps; few, because
    their names must fit on a narrow screen."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICK_STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= LEAST_TICKS:
            return ticks
    return _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(least))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= least)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def shaded(start: float, end: float) -> dict[str, Any]:
    """A stretch of the x axis that the numbers leave out."""
    return {
        "type": "rect", "xref": "x", "yref": "paper", "x0": start, "x1": end, "y0": 0, "y1": 1,
        "fillcolor": NEUTRAL, "opacity": 0.14, "line": {"width": 0}, "layer": "below",
    }  # fmt: skip


def limit_line(at: float, *, upright: bool) -> dict[str, Any]:
    """A dotted line across the plot, at an x value or at a y value."""
    along = {"x0": at, "x1": at, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
    across = {"x0": 0, "x1": 1, "y0": at, "y1": at, "xref": "paper", "yref": "y"}
    return {"type": "line", "line": {"color": NEUTRAL, "width": 1.5, "dash": "dot"}} | (along if upright else across)


def thinned(count: int, limit: int) -> NDArray[np.intp]:
    """At most `limit` of `count` positions, evenly spread."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).astype(np.intp)
