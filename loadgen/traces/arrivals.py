"""When the requests of the generated Azure traces come: gaps in ticks of 100 ns, the precision of the traces.

A model of the arrivals is drawn first; its gaps then take, in order of their length, the values of the trace's own
table of gaps. So the gaps' distribution is exact, and what the model adds is which gap follows which: the rate of each
minute for `conv`, bursts and the pace within them for `code`. Drawings are repeated until burstiness (Fano factors,
peaks, empty seconds) is within TOLERANCE of the trace's, since one peak falls in one window or in two by chance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.traces.draws import Floats, gamma_gaps, in_order_of, middles, quantile, shuffled, strata, values_in_order
from loadgen.traces.windows import burstiness

TICKS_PER_S = 10_000_000
TICKS_PER_US = 10
TOLERANCE = 0.1
MOST_DRAWINGS = 100
PACE_ROUNDS = 40
PACED = ("peak_1s_rps", "peak_10s_rps", "peak_60s_rps", "fano_1s", "fano_10s", "empty_1s")

Ticks = NDArray[np.int64]
Figures = Mapping[str, Any]


def conv_gaps(figures: Figures, rng: np.random.Generator) -> Ticks:
    """One gap before each request; the one before the first is the mean gap, so that parts can follow each other."""
    return _closest(figures, rng, _conv_drawing)


def code_gaps(figures: Figures, rng: np.random.Generator) -> Ticks:
    """One gap before each request; the one before the first is a pause as between bursts."""
    return _closest(figures, rng, _code_drawing)


def _closest(
    figures: Figures, rng: np.random.Generator, draw: Callable[[Figures, np.random.Generator], Ticks]
) -> Ticks:
    best, best_misfit = np.empty(0, dtype=np.int64), np.inf
    for _ in range(MOST_DRAWINGS):
        gaps = draw(figures, rng)
        misfit = _misfit(gaps, figures["figures"])
        if misfit < best_misfit:
            best, best_misfit = gaps, misfit
        if misfit <= TOLERANCE:
            break
    return best


def _misfit(gaps: Ticks, real: Mapping[str, float]) -> float:
    """The largest relative distance of a figure of burstiness from the trace's."""
    at_s = np.cumsum(gaps) / TICKS_PER_S
    found = burstiness(at_s - at_s[0])
    return max(abs(found[name] / real[name] - 1.0) for name in PACED)


def _conv_drawing(figures: Figures, rng: np.random.Generator) -> Ticks:
    """Gamma renewals in operational time: time that runs at the pace of each minute's rate."""
    count = int(figures["requests"])
    operational = np.cumsum(gamma_gaps(rng, figures["gap_shape"], count))
    by_minute = np.array([0, *figures["requests_by_minute"]])
    minutes_s = np.minimum(60.0 * np.arange(len(by_minute)), figures["span_s"])
    at_s = np.interp(operational * (count / operational[-1]), np.cumsum(by_minute), minutes_s)
    values_us = values_in_order(figures["gap_quantiles_us"], figures["gap_tail_us"], count - 1)
    return _ticks([values_us.mean()], in_order_of(np.diff(at_s), values_us))


def _code_drawing(figures: Figures, rng: np.random.Generator) -> Ticks:
    """The trace's bursts in a new order with new gaps, and its pauses between them in a new order."""
    bursts = shuffled(rng, len(figures["burst_sizes"]))
    sizes = np.array(figures["burst_sizes"])[bursts]
    gaps_us = _paced([figures["block_ms_by_burst"][burst] for burst in bursts], sizes - 1, figures, rng)
    pauses_us = np.array(figures["off_gaps_us"])[shuffled(rng, len(figures["off_gaps_us"]))]
    ends = np.cumsum(sizes - 1)[:-1]
    return _ticks([float(np.median(pauses_us))], np.insert(gaps_us, ends, pauses_us))


def _paced(
    blocks_ms: list[list[float]], gaps_of: NDArray[np.intp], figures: Figures, rng: np.random.Generator
) -> Floats:
    """The gaps within bursts, in microseconds. A burst's gaps come in blocks of 8 of which the duration is known: each
    gap is drawn from the table of its block's class of speed; then durations and the distribution of all gaps are
    imposed in turn."""
    block = int(figures["block_gaps"])
    lengths = np.concatenate([_block_lengths(int(gaps), block) for gaps in gaps_of])
    durations_us = 1000.0 * np.concatenate(blocks_ms)
    of_block = np.repeat(np.arange(len(lengths)), lengths)
    classes = np.searchsorted(figures["class_edges_us"], durations_us / lengths)[of_block]
    gaps_us = np.empty(len(of_block))
    for number, table in enumerate(figures["class_gap_quantiles_us"]):
        mine = np.flatnonzero(classes == number)
        gaps_us[mine] = quantile(table, strata(rng, len(mine)))
    values_us = quantile(figures["gap_quantiles_us"], middles(len(gaps_us)))
    for _ in range(PACE_ROUNDS):
        gaps_us = gaps_us * (durations_us / np.bincount(of_block, gaps_us))[of_block]
        gaps_us = in_order_of(gaps_us, values_us)
    return gaps_us


def _block_lengths(gaps: int, block: int) -> list[int]:
    full, rest = divmod(gaps, block)
    return [block] * full + ([rest] if rest else [])


def _ticks(first_us: list[float], gaps_us: Floats) -> Ticks:
    ticks: Ticks = np.rint(np.concatenate([first_us, gaps_us]) * TICKS_PER_US).astype(np.int64)
    return ticks
