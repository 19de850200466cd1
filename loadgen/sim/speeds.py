"""How long the steps of a simulated machine really take. What its policies believe is another thing: its Costs.

Arguments are those of Costs.step_s, times are seconds:

    tokens, squares  of the step's prompt pieces [start, end): Σ (end - start) and Σ (end² - start²)
    context, batch   KV tokens of the sequences that decode, and how many they are
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

from shared.wire.costs import Costs

MIXED_SLOWER = 1.1  # of the published simulator: a step with prompts and decodes, against one with prompts alone


class Speed(Protocol):
    def step_s(self, tokens: int, squares: int, context: int, batch: int) -> float: ...

    def decode_s(self, context: int, batch: int) -> float:
        """A step without prompts."""
        ...

    def decode_growth_s(self, batch: int) -> float:
        """By how much the next decode step of the same batch takes longer: every context has grown by a token."""
        ...


class Curve:
    """Linear between its knots and, along the outermost pieces, beyond both ends. `xs` rise strictly."""

    __slots__ = ("_inner", "_slopes", "_xs", "_ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        assert len(xs) == len(ys) >= 2, "a curve needs two knots"
        assert all(left < right for left, right in pairwise(xs)), "knots out of order"
        self._xs, self._ys, self._inner = tuple(xs), tuple(ys), tuple(xs[1:-1])
        knots = pairwise(zip(xs, ys, strict=True))
        self._slopes = tuple((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in knots)

    def at(self, x: float) -> float:
        piece = bisect_right(self._inner, x)
        return self._ys[piece] + self._slopes[piece] * (x - self._xs[piece])


class FittedSpeed:
    """A machine that is exactly as its coefficients say."""

    __slots__ = ("_costs", "decode_s", "step_s")

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.step_s = costs.step_s
        self.decode_s = costs.decode_s

    def decode_growth_s(self, batch: int) -> float:
        return self._costs.decode_ms[1] * batch / 1000


class MeasuredSpeed:
    """Prompts as measured, decodes as fitted.

    The time of a step with prompts is read off the measured curve at its tokens, since the measurements show a knee
    that no quadratic follows. `squares` are those of the measured steps; c of the fit says what more or fewer of them
    cost: attention over earlier tokens in a later piece of a prompt, one long prompt instead of several. Decodes that
    ride along share the load of the weights, as in Costs. A smaller step is never slower than a larger one, whatever
    was measured.
    """

    __slots__ = ("_linear", "_per_context", "_per_sequence", "_per_square", "_weights")

    def __init__(
        self, tokens: Sequence[int], squares: Sequence[float], prefill_ms: Sequence[float], costs: Costs
    ) -> None:
        self._per_square = costs.prefill_ms[2]
        self._weights, self._per_context, self._per_sequence = costs.decode_ms
        linear = [ms - self._per_square * n for n, ms in zip(squares, prefill_ms, strict=True)]
        self._linear = Curve(tokens, list(accumulate(reversed(linear), min))[::-1])

    def step_s(self, tokens: int, squares: int, context: int, batch: int) -> float:
        ms = self._linear.at(tokens) + self._per_square * squares if tokens else 0.0
        if batch:
            ms = max(ms, self._weights) + self._per_context * context + self._per_sequence * batch
        return ms / 1000

    def decode_s(self, context: int, batch: int) -> float:
        return (self._weights + self._per_context * context + self._per_sequence * batch) / 1000

    def decode_growth_s(self, batch: int) -> float:
        return self._per_context * batch / 1000


class PublishedSpeed:
    """As the simulator that was published with Splitwise has it. Its decode times were measured against the tokens of
    the prompts, and are asked for with the number of sequences: they hardly depend on it, and on the context not at
    all. That defect is kept."""

    __slots__ = ("_decode", "_prefill")

    def __init__(self, tokens: Sequence[int], prefill_ms: Sequence[float], decode_ms: Sequence[float]) -> None:
        self._prefill, self._decode = Curve(tokens, prefill_ms), Curve(tokens, decode_ms)

    def step_s(self, tokens: int, squares: int, context: int, batch: int) -> float:
        if not tokens:
            return self.decode_s(context, batch)
        if not batch:
            return self._prefill.at(tokens) / 1000
        return MIXED_SLOWER * self._prefill.at(tokens + batch) / 1000

    def decode_s(self, context: int, batch: int) -> float:
        return self._decode.at(batch) / 1000

    def decode_growth_s(self, batch: int) -> float:
        return 0.0
