"""How many prompt tokens a step takes, alone and beside decodes."""

from math import ceil

from shared.wire.costs import Costs

MIN_PIECE_TOKENS = 64  # prompts always get on, however many decodes there are
LEAST_PROMPT_SHARE = 1 / 3  # of a step's time, however much of its target the decodes take
MIN_KNEE_TOKENS = 256
ROUNDING = 1e-9
KNEE = 20  # the fixed part of a step is less than a twentieth of it beyond `KNEE * a / b` tokens


def knee_tokens(costs: Costs, limit: int) -> int:
    """Prompt tokens of a step beyond which a larger one gains no throughput, only adds latency (DistServe's L_m)."""
    a, b, _ = costs.prefill_ms
    return min(limit, max(MIN_KNEE_TOKENS, int(KNEE * a / b))) if b else limit


def longest_step_s(decode_s: float, target_s: float) -> float:
    """How long a step may take that has prompts beside decodes which alone would take `decode_s`."""
    return max(target_s, decode_s / (1.0 - LEAST_PROMPT_SHARE))


class StepRoom:
    """What prompts may still take of one step: `tokens` in number, and, if `until_s` is given, as many as let a step
    with `batch` decodes over `context` tokens end by then, but MIN_PIECE_TOKENS at least."""

    def __init__(
        self, costs: Costs, tokens: int, *, until_s: float | None = None, context: int = 0, batch: int = 0
    ) -> None:
        self._costs = costs
        self._tokens = tokens
        self._least = min(tokens, MIN_PIECE_TOKENS)
        self._context, self._batch = context, batch
        self._timed = until_s is not None
        self._empty_s = costs.step_s(1, 0, context, batch) - costs.prefill_ms[1] / 1000
        self._left_s = (until_s or 0.0) * (1.0 + ROUNDING) - self._empty_s

    def tokens(self, start: int, share: float = 1.0) -> int:
        """How long a piece from position `start` may be, within this share of what is left."""
        number = ceil(self._tokens * share)
        if not self._timed:
            return number
        step_s = self._empty_s + share * self._left_s
        in_time = self._costs.prompt_tokens_within(step_s, start=start, context=self._context, batch=self._batch)
        return min(number, max(in_time, ceil(self._least * share)))

    def take(self, start: int, end: int) -> None:
        """A piece [start, end) is in the step."""
        self._tokens -= end - start
        self._least = max(0, self._least - (end - start))
        _, b, c = self._costs.prefill_ms
        self._left_s -= (b * (end - start) + c * (end * end - start * start)) / 1000
