"""Statistics of a list of numbers, fit for JSON: plain floats, None where there is nothing, never NaN or infinity."""

import math

import numpy as np

from loadgen.measure.latencies import FloatArray

PERCENTILES = (50, 90, 99)

Stats = dict[str, float | int | None]


def number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def share(part: float, whole: float) -> float | None:
    """None when there is nothing to take a share of, or no time to take a rate over."""
    return number(part / whole) if whole > 0 else None


def stats(values: FloatArray) -> Stats:
    """Percentiles by linear interpolation, as numpy has them; `n` says how much stands behind them."""
    if len(values) == 0:
        return {"mean": None, **{f"p{percent}": None for percent in PERCENTILES}, "max": None, "n": 0}
    points = np.percentile(values, PERCENTILES)
    return {
        "mean": number(values.mean()),
        **{f"p{percent}": number(point) for percent, point in zip(PERCENTILES, points, strict=True)},
        "max": number(values.max()),
        "n": len(values),
    }
