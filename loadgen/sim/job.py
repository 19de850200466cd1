"""One simulated request: a Work of the batcher that counts tokens instead of holding them."""

from shared.ids import Attempt, RequestId
from shared.wire.messages import Submitted


class Job:
    """`length`: prompt and sampled tokens; `left`: tokens still to sample (what no scheduler is told). `event_s`: when
    each token came. prefilled_s is when the prompt was computed, None before."""

    __slots__ = (
        "arrived_s", "computed", "demand_blocks", "event_s", "granted_s", "index", "key", "left", "length",
        "output_tokens", "prefill_s", "prefilled_s", "prompt_tokens", "rank", "started_s", "submitted",
    )  # fmt: skip

    def __init__(self, index: int, arrived_s: float, output_tokens: int, submitted: Submitted) -> None:
        self.index = index
        self.key: Attempt = (RequestId(submitted.request_id), 1)
        self.rank = self.arrived_s = arrived_s
        self.submitted = submitted
        self.prompt_tokens = self.length = submitted.prompt_tokens
        self.computed = 0
        self.left = self.output_tokens = output_tokens
        self.event_s: list[float] = []
        self.prefill_s = 0.0  # what its prompt weighs in the queue of its worker
        self.demand_blocks = 0  # what is expected of it where it decodes
        self.started_s: float | None = None
        self.prefilled_s: float | None = None
        self.granted_s: float | None = None
