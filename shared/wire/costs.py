"""What a step of the engine costs: the coefficients that workers fit and report, and what they predict.

    prefill  a + b * tokens + c * Σ (end² - start²)     of prompt pieces [start, end)
    decode   a + b * context + c * batch                context: KV tokens of all sequences of the batch

A step that does both loads the weights once: the larger `a`, and everything that depends on its size. The forms are
those of DistServe (appendix A); a decode that depends on batch *and* context is what Splitwise's simulator lacks.
"""

import math
from dataclasses import dataclass

Coefficients = tuple[float, ...]  # a, b, c; milliseconds
REFERENCE_TOKENS = 1024  # prompts are compared by what one of this length would wait and take


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds, all at least 0. Times that methods return are seconds."""

    prefill_ms: Coefficients
    decode_ms: Coefficients

    def step_s(self, tokens: int, squares: int, context: int, batch: int) -> float:
        """A step with `tokens` of prompts (Σ end² - start² = `squares`) and `batch` decodes over `context` tokens."""
        fixed = more = 0.0
        if tokens:
            fixed, b, c = self.prefill_ms
            more = b * tokens + c * squares
        if batch:
            a, b, c = self.decode_ms
            fixed = max(fixed, a)
            more += b * context + c * batch
        return (fixed + more) / 1000

    def prefill_s(self, tokens: int) -> float:
        """One prompt, alone in its step."""
        a, b, c = self.prefill_ms
        return (a + tokens * (b + c * tokens)) / 1000

    def decode_s(self, context: int, batch: int) -> float:
        """A step without prompts."""
        a, b, c = self.decode_ms
        return (a + b * context + c * batch) / 1000

    def decode_growth_s(self, batch: int) -> float:
        """How much longer than the one before each further decode step of the same batch takes."""
        return self.decode_ms[1] * batch / 1000

    def prompt_tokens_within(self, step_s: float, *, start: int, context: int, batch: int) -> int:
        """How long a prompt piece from position `start` may be for the step to take `step_s` at most (>= 0)."""
        a, b, c = self.prefill_ms
        decode_a, decode_b, decode_c = self.decode_ms
        fixed = max(a, decode_a) if batch else a
        left_ms = step_s * 1000 - fixed - (decode_b * context + decode_c * batch)
        slope = b + 2 * c * start
        if left_ms <= 0:
            return 0
        if c == 0:
            return int(left_ms / slope) if slope else 1 << 30
        return int((math.sqrt(slope * slope + 4 * c * left_ms) - slope) / (2 * c))


@dataclass(frozen=True, slots=True)
class CostFit:
    """Costs as fitted from a worker's own steps. Errors: mean |predicted / measured - 1| of the latest steps; `steps`:
    how many were seen. With few of them the costs are a guess."""

    costs: Costs
    prefill_error: float
    decode_error: float
    prefill_steps: int
    decode_steps: int
