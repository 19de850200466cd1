"""Mean and percentiles of a sample under many weightings of the requests it came from, exactly and fast.

Weighting a request by w stands for drawing it w times with everything it brought: a request's gaps are never torn
apart. Result k equals numpy's linear percentile of the sample in which each value stands as often as weights[k] says.

The values are sorted once and cut into blocks of equal length. One matrix product tells how much weight each block has
under each weighting; only the block that holds the wanted rank is looked into.
"""

import math
from collections.abc import Sequence

import numpy as np

from loadgen.measure.latencies import FloatArray, IntArray

MOST_CELLS = 8_000_000  # requests times blocks: 64 MB


class WeightedSample:
    """`owners[k]` is the request (0 to requests - 1) that values[k] came from. Weights are (weightings, requests) and
    hold whole numbers; where they leave nothing, results are NaN."""

    def __init__(self, values: FloatArray, owners: IntArray, requests: int) -> None:
        order = np.argsort(values)
        self._values, self._owners = values[order], owners[order]
        blocks = max(1, min(math.isqrt(len(values)), MOST_CELLS // max(1, requests)))
        self._block_length = max(1, math.ceil(len(values) / blocks))
        blocks = max(1, math.ceil(len(values) / self._block_length))
        cell = self._owners * blocks + np.arange(len(values)) // self._block_length
        counts = np.bincount(cell, minlength=requests * blocks).reshape(requests, blocks)
        self._counts = counts.astype(np.float64)
        self._sums = np.bincount(owners, weights=values, minlength=requests)
        self.requests = int((counts.sum(axis=1) > 0).sum())  # that have a value

    def mean(self, weights: FloatArray) -> FloatArray:
        totals = weights @ self._counts.sum(axis=1)
        found = np.full(len(weights), np.nan)
        np.divide(weights @ self._sums, totals, out=found, where=totals > 0)
        return found

    def percentiles(self, weights: FloatArray, percents: Sequence[float]) -> list[FloatArray]:
        """One array over the weightings for each of the percentages."""
        upto = np.cumsum(weights @ self._counts, axis=1)
        return [self._percentile(weights, upto, percent) for percent in percents]

    def _percentile(self, weights: FloatArray, upto: FloatArray, percent: float) -> FloatArray:
        found = np.full(len(weights), np.nan)
        total = upto[:, -1]
        some = total > 0
        rank = percent / 100 * (total[some] - 1)
        low = np.floor(rank)
        below = self._at(weights[some], upto[some], low)
        above = self._at(weights[some], upto[some], np.minimum(low + 1, total[some] - 1))
        found[some] = below + (above - below) * (rank - low)
        return found

    def _at(self, weights: FloatArray, upto: FloatArray, rank: FloatArray) -> FloatArray:
        """The value of that rank, counted from 0, when each value is repeated by its weight."""
        row = np.arange(len(weights))
        block = (upto <= rank[:, None]).sum(axis=1)
        before = np.where(block > 0, upto[row, block - 1], 0.0)
        position = block[:, None] * self._block_length + np.arange(self._block_length)
        last = len(self._values) - 1
        weight = weights[row[:, None], self._owners[np.minimum(position, last)]]
        step = (np.cumsum(weight, axis=1) <= (rank - before)[:, None]).sum(axis=1)
        found: FloatArray = self._values[np.minimum(position[:, 0] + step, last)]
        return found
