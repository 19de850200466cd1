"""Fitting the cost model to a worker's own step times, one step at a time.

Both forms of shared.wire.costs are linear in three coefficients. Each step moves them by recursive least squares on
the relative error, with forgetting. From one step to the next they move as little as explains it, so a worker whose
batches all look alike keeps what it knew of others, or guessed at its start.
"""

from math import sqrt

from shared.wire.costs import Coefficients, CostFit, Costs

GUESS = Costs((10.0, 1.0, 0.0004), (35.0, 0.004, 2.0))  # a model of 135 million parameters on one core
KEPT = 0.97  # of the weight of older steps: about 30 are remembered
PRIOR = 0.01  # weight of the guess, in steps
LEAST_PART = 1e-4  # of a step
STEADY = 0.01  # damps what differences between almost equal steps would say (Marquardt)
ERROR_STEPS = 20  # over which errors are smoothed
CLIP = 3.0  # a single step counts as so many usual errors at most
LEAST_ERROR = 0.05

Matrix = list[list[float]]


class CostFitter:
    """`observe` every step, then ask for the `fit`. The first step of a phase scales the guess for it."""

    def __init__(self, guess: Costs = GUESS) -> None:
        self._prefill = _Form(guess.prefill_ms)
        self._decode = _Form(guess.decode_ms)
        self.fit = self._fit()

    def observe(
        self, tokens: int, squares: int, context: int, batch: int, seconds: float, reinforced: float = 1.0
    ) -> None:
        """A step took so long; the arguments are those of Costs.step_s. `reinforced`: with how many times the worker's
        own threads, at most. Costs are those of its own, which hold when everyone computes: such a step tells only that
        these take as long at least, and so many times as long at most."""
        if seconds <= 0 or not (tokens or batch):
            return
        if reinforced > 1:
            foretold_s = self.fit.costs.step_s(tokens, squares, context, batch)
            if seconds <= foretold_s <= seconds * reinforced:
                self._prefill.steps += bool(tokens)
                self._decode.steps += bool(batch)
                self.fit = self._fit()
                return
            seconds = max(seconds, min(foretold_s, seconds * reinforced))
        if not batch:
            self._prefill.observe((1.0, tokens, squares), seconds * 1000)
        elif not tokens:
            self._decode.observe((1.0, context, batch), seconds * 1000)
        else:
            self._observe_mixed((1.0, tokens, squares), (1.0, context, batch), seconds * 1000)
        self.fit = self._fit()

    def _observe_mixed(self, prompts: Coefficients, decodes: Coefficients, measured_ms: float) -> None:
        """The form that the step is mostly made of learns what the other one does not explain."""
        more, less = (self._prefill, prompts), (self._decode, decodes)
        if more[0].predicted_ms(prompts) < less[0].predicted_ms(decodes):
            more, less = less, more
        (large, x), (small, y) = more, less
        fixed_ms = min(large.coefficients[0], small.coefficients[0])  # the weights are loaded once
        rest_ms = small.predicted_ms(y) - fixed_ms
        small.judge((large.predicted_ms(x) + rest_ms) / measured_ms)
        small.steps += 1
        if measured_ms > 2 * rest_ms:
            large.observe(x, measured_ms - rest_ms)

    def _fit(self) -> CostFit:
        return CostFit(
            costs=Costs(self._prefill.coefficients, self._decode.coefficients),
            prefill_error=self._prefill.error,
            decode_error=self._decode.error,
            prefill_steps=self._prefill.steps,
            decode_steps=self._decode.steps,
        )

    def check(self) -> None:
        for form in (self._prefill, self._decode):
            assert all(0.0 <= c < float("inf") for c in form.coefficients), "a coefficient is negative or not finite"
            assert any(form.coefficients), "steps are predicted to take no time"


class _Form:
    """One linear form. `coefficients` is the nearest point to the estimate without a negative one, near in the sense of
    `_known`, the information matrix."""

    def __init__(self, guess: Coefficients) -> None:
        self.coefficients = guess
        self.error = 1.0
        self.steps = 0
        self._judged = 0
        self._estimate = list(guess)
        self._known: Matrix = []

    def judge(self, ratio: float) -> None:
        """Take note of predicted / measured."""
        self._judged += 1
        self.error += (abs(ratio - 1.0) - self.error) / min(self._judged, ERROR_STEPS)

    def predicted_ms(self, x: Coefficients) -> float:
        return _dot(self.coefficients, x)

    def observe(self, x: Coefficients, measured_ms: float) -> None:
        ratio = _dot(self.coefficients, x) / measured_ms
        limit = CLIP * max(self.error, LEAST_ERROR)
        self.steps += 1
        if self._known:
            self.judge(ratio)
        else:
            self._start(1.0 / ratio, x, measured_ms)
        scale_ms = max(_dot(self.coefficients, x), measured_ms)  # an outlier either way so counts little
        missing = min(limit, max(-limit, (measured_ms - _dot(self._estimate, x)) / scale_ms))
        z = [value / scale_ms for value in x]
        self._estimate = [e + gain * missing for e, gain in zip(self._estimate, self._learn(z), strict=True)]
        a, b, c = _not_negative(self._estimate, self._known)
        if a or b or c:
            self.coefficients = (a, b, c)

    def _start(self, scale: float, x: Coefficients, measured_ms: float) -> None:
        """Scale the guess to the first step. Errors are then laid to its parts in proportion, until more is known."""
        self._estimate = [scale * c for c in self._estimate]
        parts = [max(c * value / measured_ms, LEAST_PART) for c, value in zip(self._estimate, x, strict=True)]
        weights = [PRIOR * (value / measured_ms) ** 2 / part for value, part in zip(x, parts, strict=True)]
        self._known = [[weights[i] if i == j else 0.0 for j in range(3)] for i in range(3)]

    def _learn(self, z: list[float]) -> list[float]:
        """Add what this step tells; returns how much each coefficient gains from an error of 1."""
        known = self._known
        for i in range(3):
            for j in range(3):
                known[i][j] = KEPT * known[i][j] + z[i] * z[j]
        steady = [[known[i][j] * (1.0 + STEADY) if i == j else known[i][j] for j in range(3)] for i in range(3)]
        return _solved(steady, z)


def _dot(a: Coefficients | list[float], b: Coefficients | list[float]) -> float:
    return sum([x * y for x, y in zip(a, b, strict=True)])


def _solved(matrix: Matrix, right: list[float]) -> list[float]:
    """Of a symmetric positive definite system, by Cholesky's decomposition; a direction without weight gets 0."""
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - _dot(lower[i][:j], lower[j][:j])
            if i == j:
                lower[i][i] = sqrt(rest) if rest > 1e-12 * matrix[i][i] else 0.0
            else:
                lower[i][j] = rest / lower[j][j] if lower[j][j] else 0.0
    result = [0.0] * size
    for i in range(size):
        rest = right[i] - _dot(lower[i][:i], result[:i])
        result[i] = rest / lower[i][i] if lower[i][i] else 0.0
    for i in reversed(range(size)):
        rest = result[i] - sum([lower[k][i] * result[k] for k in range(i + 1, size)])
        result[i] = rest / lower[i][i] if lower[i][i] else 0.0
    return result


def _not_negative(estimate: list[float], known: Matrix) -> list[float]:
    """Negative ones become 0, and the others make up for that."""
    result, zero = estimate, set[int]()
    while negative := {i for i in range(3) if result[i] < 0}:
        zero |= negative
        free = [i for i in range(3) if i not in zero]
        pull = [sum([known[i][k] * estimate[k] for k in zero]) for i in free]
        moved = _solved([[known[i][j] for j in free] for i in free], pull)
        result = [0.0] * 3
        for i, by in zip(free, moved, strict=True):
            result[i] = estimate[i] + by
    return result
