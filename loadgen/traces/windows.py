"""Burstiness of arrivals, by counting them in windows of equal length.

Windows begin at 0; the last one, when the arrivals end within it, is left out.
"""

import numpy as np
from numpy.typing import NDArray

from loadgen.traces.draws import Floats

FANO_WINDOWS_S = (1, 10)
PEAK_WINDOWS_S = (1, 10, 60)
MOST_WINDOWS = 50_000_000  # a year and a half of seconds


def counts(at_s: Floats, window_s: float) -> NDArray[np.intp]:
    """Arrivals in each whole window; empty when the arrivals span less than one, or more than can be counted."""
    if len(at_s) == 0 or at_s[-1] / window_s > MOST_WINDOWS:
        return np.empty(0, dtype=np.intp)
    number = (at_s / window_s).astype(np.intp)
    return np.bincount(number, minlength=1)[: int(at_s[-1] // window_s)]


def burstiness(at_s: Floats) -> dict[str, float]:
    """Peaks per second, Fano factors (variance over mean of the counts), the share of seconds in which nothing came,
    and the coefficient of variation of the gaps. What the span is too short or too long for is left out."""
    found: dict[str, float] = {}
    for window_s in PEAK_WINDOWS_S:
        in_window = counts(at_s, window_s)
        if len(in_window) == 0:
            continue
        found[f"peak_{window_s}s_rps"] = float(in_window.max()) / window_s
        if window_s in FANO_WINDOWS_S and in_window.any():
            found[f"fano_{window_s}s"] = float(in_window.var() / in_window.mean())
        if window_s == 1:
            found["empty_1s"] = float((in_window == 0).mean())
    gaps_s = np.diff(at_s)
    if len(gaps_s) and gaps_s.mean() > 0:
        found["gap_cv"] = float(gaps_s.std() / gaps_s.mean())
    return found
