"""How far the figures of one run would move with other requests of the same kind: 95 % intervals by the bootstrap.

Requests are drawn with replacement, each with all its gaps; gaps of one request depend on each other, so drawing them
singly would promise too much. What the bootstrap cannot see: a share of exactly 0 or 1 gets an interval of no width,
and the far percentiles of a few requests get one that is too narrow. For differences between runs see ratio.
"""

import numpy as np

from loadgen.measure.latencies import MEASURES, BoolArray, FloatArray, Measured
from loadgen.measure.stats import PERCENTILES
from loadgen.measure.weighted import WeightedSample

MOST_RESAMPLES, LEAST_RESAMPLES = 1000, 200
MOST_WEIGHTS = 8_000_000  # resamples times requests
MOST_STEPS = 800_000_000  # resamples times gaps
DEFINED_SHARE = 0.9  # an interval of what is mostly undefined says nothing
STATS = ("mean", *(f"p{percent}" for percent in PERCENTILES))

Interval = list[float] | None


class Figures:
    """The figures of a run under weightings of its requests; `met`: which requests were good, None without an SLO."""

    def __init__(self, table: Measured, met: BoolArray | None) -> None:
        self._table = table
        self._met = met
        self._samples = {name: WeightedSample(*table.sample(name), table.requests) for name in MEASURES}
        ended = table.completed & table.inside(table.done_s)
        self._counts: dict[str, FloatArray] = {
            "output_tokens_per_s": table.window_tokens.astype(np.float64),
            "requests_per_s": ended.astype(np.float64),
        }

    def requests_behind(self, name: str) -> int:
        """How many requests a figure of `under` rests on."""
        measure = name.partition(".")[0]
        sample = self._samples.get(measure)
        if sample is not None:
            return sample.requests
        return int((self._counts[name] > 0).sum() if name in self._counts else self._table.counted.sum())

    def under(self, weights: FloatArray) -> dict[str, FloatArray]:
        """`ttft_s.p50` and the like, rates, attainment and goodput, one value per weighting; NaN where undefined."""
        found: dict[str, FloatArray] = {}
        for name, sample in self._samples.items():
            values = [sample.mean(weights), *sample.percentiles(weights, PERCENTILES)]
            found |= {f"{name}.{stat}": value for stat, value in zip(STATS, values, strict=True)}
        length_s = self._table.window_length_s if self._table.window_length_s > 0 else np.nan
        for name, counts in self._counts.items():
            found[name] = weights @ counts / length_s
        due = weights @ self._table.counted.astype(np.float64)
        met = np.full(len(weights), np.nan) if self._met is None else weights @ self._met.astype(np.float64)
        found["attainment"] = np.divide(met, due, out=np.full(len(weights), np.nan), where=due > 0)
        found["goodput_rps"] = met / length_s
        return found


def resamples(requests: int, gaps: int) -> int:
    """As many as the work allows: a run of millions of gaps should still take seconds."""
    allowed = min(MOST_WEIGHTS // max(1, requests), MOST_STEPS // max(1, gaps))
    return max(LEAST_RESAMPLES, min(MOST_RESAMPLES, allowed))


def drawn(rng: np.random.Generator, times: int, rows: BoolArray) -> FloatArray:
    """(times, len(rows)): how often each request was drawn, in as many draws as there are requests in `rows`."""
    among = np.flatnonzero(rows)
    weights = np.zeros((times, len(rows)))
    for row in weights:
        if len(among):
            row[among] = np.bincount(rng.integers(len(among), size=len(among)), minlength=len(among))
    return weights


def interval(values: FloatArray) -> Interval:
    """The middle 95 % of what is defined; None when too little is."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(1.0, DEFINED_SHARE * len(values)):
        return None
    low, high = np.percentile(defined, (2.5, 97.5))
    return [float(low), float(high)]


def confidence(table: Measured, met: BoolArray | None, *, seed: int) -> dict[str, dict[str, Interval]]:
    """{measure: {"mean" | "p50" | "p90" | "p99": [low, high]}}, and attainment and goodput_rps with the one statistic
    "value". None where it is undefined or rests on a single request."""
    figures = Figures(table, met)
    rng = np.random.default_rng(seed)
    found = figures.under(drawn(rng, resamples(table.requests, len(table.gap_s)), table.counted))

    def of(name: str) -> Interval:
        return interval(found[name]) if figures.requests_behind(name) >= 2 else None

    result = {name: {stat: of(f"{name}.{stat}") for stat in STATS} for name in MEASURES}
    return {**result, "attainment": {"value": of("attainment")}, "goodput_rps": {"value": of("goodput_rps")}}
