"""How much more or less b does than a, over runs of the same schedules: b/a with a 95 % interval.

Runs are paired in order and replay the same schedule. The value is the ratio of the medians over the runs of a figure.
The interval comes from a paired bootstrap on two levels: pairs of runs are drawn, and within a pair the same requests
for both sides. With one pair it knows nothing of the differences between runs and is too narrow.
"""

from collections.abc import Sequence

import numpy as np

from loadgen.measure.confidence import Figures, drawn, interval, resamples
from loadgen.measure.latencies import FloatArray, measured
from loadgen.measure.slo import Slo, good, judge
from loadgen.measure.splitwise import IdleSpeed
from loadgen.measure.stats import number
from loadgen.record import Run
from shared.errors import ConfigError

Ratio = dict[str, float | bool | None]


def ratios(
    a: Sequence[Run], b: Sequence[Run], *, slo: Slo | None, seed: int, idle: IdleSpeed | None = None
) -> dict[str, Ratio]:
    """{"ttft_s.p50": {"ratio", "low", "high", "significant": the interval leaves out 1}, ...}. All are None
    where a figure is undefined in a run or 0 in a's median; the last two also where it rests on one request."""
    _check_pairs(a, b)
    rng = np.random.default_rng(seed)
    times = min(resamples(run.scheduled, sum(len(r.event_s) for r in run.records)) for run in (*a, *b))
    choice = rng.integers(len(a), size=(times, len(a)))
    whole: list[tuple[dict[str, FloatArray], ...]] = []
    behind: dict[str, int] = {}
    drawn_a: dict[str, FloatArray] = {}
    drawn_b: dict[str, FloatArray] = {}
    for pair, runs in enumerate(zip(a, b, strict=True)):
        sides = [_figures(run, slo, idle) for run in runs]
        everyone = np.ones(runs[0].scheduled, dtype=np.bool_)
        whole.append(tuple(side.under(np.ones((1, len(everyone)))) for side in sides))
        at = np.nonzero(choice == pair)
        weights = drawn(rng, len(at[0]), everyone)
        for side, found in zip(sides, (drawn_a, drawn_b), strict=True):
            for name, values in side.under(weights).items():
                found.setdefault(name, np.empty(choice.shape))[at] = values
        for name in drawn_a:
            behind[name] = behind.get(name, 0) + min(side.requests_behind(name) for side in sides)
    result = {}
    for name in drawn_a:
        value = _over(*(np.array([pair[side][name] for pair in whole]).T for side in (0, 1)))
        result[name] = _ratio(value[0], _over(drawn_a[name], drawn_b[name]) if behind[name] >= 2 else None)
    return result


def _check_pairs(a: Sequence[Run], b: Sequence[Run]) -> None:
    if len(a) != len(b) or not a:
        raise ConfigError(f"compare: needs as many runs of each target, at least one; there are {len(a)} and {len(b)}")
    for pair, (left, right) in enumerate(zip(a, b, strict=True)):
        if left.schedule_sha256 != right.schedule_sha256 or left.scheduled != right.scheduled:
            raise ConfigError(f"compare: the runs number {pair} did not replay the same schedule")


def _figures(run: Run, slo: Slo | None, idle: IdleSpeed | None) -> Figures:
    table = measured(run)
    return Figures(table, None if slo is None else good(judge(table, slo, idle)))


def _over(a: FloatArray, b: FloatArray) -> FloatArray:
    """Ratio of the medians over runs, for arrays of (resamples, runs); NaN where undefined."""
    below, above = np.median(a, axis=1), np.median(b, axis=1)
    ratio: FloatArray = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return ratio


def _ratio(value: float, resampled: FloatArray | None) -> Ratio:
    known = number(value)
    if known is None or resampled is None:
        return {"ratio": known, "low": None, "high": None, "significant": None}
    ci = interval(resampled)
    low, high = (None, None) if ci is None else ci
    inside = low is None or high is None or low <= 1 <= high
    return {"ratio": known, "low": low, "high": high, "significant": None if ci is None else not inside}
