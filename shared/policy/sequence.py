"""One attempt at a request as a worker holds it: its tokens, how far their KV is computed, and where it stands."""

from dataclasses import dataclass, field

from shared.ids import Address, Attempt
from shared.wire.messages import Submitted
from shared.wire.terms import Finish


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` is the request's prompt and what was sampled since; KV lies in pages for positions [0, computed).

    The next step computes tokens[computed:]: many tokens are a prompt (prefill), one token is a decode. Preemption by
    recompute is `computed = 0` and nothing else.
    """

    request: Submitted
    arrived_at: float  # when the request first reached a gateway, on this worker's clock: FCFS over all attempts
    token_worker: Address | None  # where the KV goes after prefill; None: decoded here
    received_from: Address | None = None  # the prompt worker that handed the KV over
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    sent: int = 0  # sampled tokens that the gateway was told
    cancelled: bool = False
    prefill_started_at: float = 0.0
    prefill_ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.token_ids)

    @property
    def key(self) -> Attempt:
        return self.request.key

    @property
    def pending_tokens(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def sampled(self) -> int:
        """Tokens sampled in this attempt."""
        return len(self.tokens) - len(self.request.token_ids)

    @property
    def position(self) -> int:
        """Number of the next output token, counted over all attempts."""
        return self.request.emitted + self.sampled

    def unsent(self) -> tuple[int, tuple[int, ...]]:
        """Position and tokens that the gateway has not been told yet."""
        start = len(self.request.token_ids) + self.sent
        return self.request.emitted + self.sent, tuple(self.tokens[start:])

    def finish_after(self, token: int, eos: tuple[int, ...], max_model_len: int) -> Finish | None:
        """Whether the request ends with this token, the last of `tokens`."""
        sampling = self.request.sampling
        if token in sampling.stop_token_ids or (token in eos and not sampling.ignore_eos):
            return Finish.STOP
        if self.position >= sampling.max_tokens or len(self.tokens) >= max_model_len:
            return Finish.LENGTH
        return None
