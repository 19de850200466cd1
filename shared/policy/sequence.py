"""One attempt at a request as a worker holds it: its tokens, how far their KV is computed, and where it stands."""

from dataclasses import dataclass, field

from shared.ids import Address, Attempt
from shared.wire.messages import Submitted
from shared.wire.terms import Finish

AGING_S = 10.0  # a lower class of priority waits so much longer than the class above it, and no more


def rank_of(request: Submitted, arrived_at: float) -> float:
    """Who is served first: the smallest."""
    return arrived_at + AGING_S * request.priority


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` is the request's prompt and what was sampled since; KV lies in pages for positions [0, computed).

    Still to be computed is tokens[computed:]: a prompt, in pieces, before the first sampled token and after preemption
    by recompute, which is `computed = 0` and nothing else; otherwise one token, a decode. `rank`: who is served first.
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
    rank: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.token_ids)
        self.rank = rank_of(self.request, self.arrived_at)

    @property
    def key(self) -> Attempt:
        return self.request.key

    @property
    def length(self) -> int:
        return len(self.tokens)

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
