"""What is asked of the mesh lately, and how much of it one worker could do.

The mix is the mean of recent requests, each weighed by exp(-age / window). A worker's capacity is given in requests of
that mix per second, so that demand and machines of any speed and memory compare in one unit.
"""

from dataclasses import dataclass
from math import exp, hypot, sqrt

from shared.kv.blocks import blocks_for
from shared.policy.worker_kind import KV_SHARE, WorkerKind

FOLD_S = 0.25  # how finely ages are told apart
LEAST_SEEN_S = 1.0  # no rate is taken from less


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Means per request. `decode_steps`: tokens after the first; `context`: KV tokens that such a step reads. `noise`:
    relative standard error of prompt work over decode work, for so few requests of so different lengths."""

    requests_per_s: float
    prompt_tokens: float
    prompt_squares: float
    decode_steps: float
    context: float
    noise: float

    def prefill_s(self, kind: WorkerKind) -> float:
        """What one request costs a prompt worker."""
        a, b, c = kind.prefill_ms
        return max(1e-6, (a + b * self.prompt_tokens + c * self.prompt_squares) / 1000)

    def decode_s(self, kind: WorkerKind) -> float:
        """What one request costs a token worker that is as full as memory, seats and step target allow."""
        blocks = blocks_for(int(self.prompt_tokens + self.decode_steps) + 1, kind.block_size)
        batch = min(KV_SHARE * kind.kv_blocks_total / blocks, kind.max_num_seqs)
        a, b, c = kind.decode_ms
        per_sequence_s = (b * self.context + c) / 1000
        if per_sequence_s:
            batch = min(batch, kind.room_s() / per_sequence_s)
        batch = max(1.0, batch)
        return max(1e-6, self.decode_steps * (a / 1000 + batch * per_sequence_s) / batch)


class Traffic:
    """Recent requests of one model. `add` costs a few sums: it sees every request."""

    __slots__ = (
        "_context", "_folded_at", "_output", "_output_noise", "_prompt", "_prompt_noise", "_requests", "_seen_s",
        "_squares", "_window_s",
    )  # fmt: skip

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._folded_at: float | None = None
        self._seen_s = 0.0  # how long it has listened, weighed as the requests are: the window in the end
        self._requests = self._prompt = self._squares = self._output = self._context = 0.0
        self._prompt_noise = self._output_noise = 0.0  # sums of squared weighed lengths

    def add(self, prompt_tokens: int, decode_steps: int, now: float) -> None:
        if self._folded_at is None or now - self._folded_at >= FOLD_S:
            self._fold(now)
        square = prompt_tokens * prompt_tokens
        self._requests += 1.0
        self._prompt += prompt_tokens
        self._squares += square
        self._output += decode_steps
        self._context += decode_steps * (prompt_tokens + decode_steps / 2)
        self._prompt_noise += square
        self._output_noise += decode_steps * decode_steps

    def mix(self, now: float) -> Mix | None:
        """None while nothing is known."""
        self._fold(now)
        if self._requests < 1e-3:
            return None
        return Mix(
            requests_per_s=self._requests / max(self._seen_s, LEAST_SEEN_S),
            prompt_tokens=self._prompt / self._requests,
            prompt_squares=self._squares / self._requests,
            decode_steps=self._output / self._requests,
            context=self._context / self._output if self._output else 0.0,
            noise=hypot(_relative(self._prompt_noise, self._prompt), _relative(self._output_noise, self._output)),
        )

    def _fold(self, now: float) -> None:
        age_s = 0.0 if self._folded_at is None else now - self._folded_at
        if age_s < 0:
            return
        kept = exp(-age_s / self._window_s)
        self._folded_at = now
        self._seen_s = self._seen_s * kept + self._window_s * (1 - kept)
        self._requests *= kept
        self._prompt *= kept
        self._squares *= kept
        self._output *= kept
        self._context *= kept
        self._prompt_noise *= kept * kept
        self._output_noise *= kept * kept

    def check(self) -> None:
        assert self._prompt_noise <= self._squares * (1 + 1e-9) + 1e-9, "weights are at most 1"
        assert self._prompt**2 <= self._squares * self._requests * (1 + 1e-9) + 1e-9, "Cauchy-Schwarz"


def _relative(squares: float, total: float) -> float:
    return sqrt(squares) / total if total > 0 else 0.0
