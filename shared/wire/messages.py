"""All messages of the mesh: one tagged union of frozen dataclasses, grouped by the road they travel.

Durations are seconds on the receiver's own clock; points in time never cross the wire. `attempt` counts how often the
gateway has submitted a request; every receiver drops what belongs to an attempt older than the newest it knows.
"""

from dataclasses import dataclass

from shared.ids import Address, Attempt, RequestId, ServiceId, WorkerId
from shared.wire.reports import DrainWorker, RoleChanged, ServiceReport, SetRole, WorkerReport
from shared.wire.terms import Finish, PushMode, Sampling

# ---- broker streams -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """gateway → router: one attempt at a request. `token_ids` is the prompt followed by `emitted` tokens that earlier
    attempts generated and the gateway received; sampling positions and limits count from the border between them."""

    request_id: RequestId
    attempt: int
    token_ids: tuple[int, ...]
    emitted: int
    sampling: Sampling
    time_left_s: float
    waited_s: float  # since the request first arrived at the gateway: FCFS holds over attempts
    gateway_id: ServiceId
    reply_to: Address
    model: str
    priority: int = 0  # lower is served earlier, as in vLLM
    avoid: tuple[WorkerId, ...] = ()

    @property
    def key(self) -> Attempt:
        return self.request_id, self.attempt

    @property
    def prompt_tokens(self) -> int:
        """Tokens whose KV must be computed before the next token can be sampled."""
        return len(self.token_ids)

    @property
    def tokens_left(self) -> int:
        return self.sampling.max_tokens - self.emitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """router → prompt worker's stream: compute this prompt, hand its KV to `token_worker` (may be the same worker)."""

    request: Submitted
    prompt_worker: WorkerId
    token_worker: WorkerId
    token_address: Address  # link address of the token worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """router → everyone, on `placements`: what Assigned says, without the tokens."""

    request_id: RequestId
    attempt: int
    prompt_worker: WorkerId
    token_worker: WorkerId
    prompt_address: Address
    token_address: Address
    prompt_tokens: int
    output_tokens: int  # upper bound: what is left of max_tokens
    gateway_id: ServiceId
    time_left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaceable:
    """router → everyone, on `placements`: no worker can ever or now take this attempt; the gateway decides."""

    request_id: RequestId
    attempt: int
    gateway_id: ServiceId
    reason: str


# ---- links: worker → gateway ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens of one request: `token_ids[0]` is output token `position`. `finish` ends the request."""

    request_id: RequestId
    attempt: int
    position: int
    token_ids: tuple[int, ...]
    finish: Finish | None = None
    stage: "StageTimes | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What a worker measured of one request, in seconds; sent with the first token and with the last."""

    worker_id: WorkerId
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One frame per step and gateway: the new tokens of all requests that this gateway owns here."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOff:
    """prompt worker → gateway: this request's KV has arrived and was acknowledged. For timeline and metrics.

    exposed_s: from the last layer computed to the acknowledgement, on the prompt worker's clock.
    """

    request_id: RequestId
    attempt: int
    mode: PushMode
    transport: str
    kv_bytes: int
    transfer_s: float
    exposed_s: float
    resent_slices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """worker → gateway: this attempt ends here. `retryable` invites the gateway to submit the next attempt."""

    request_id: RequestId
    attempt: int
    retryable: bool
    code: str
    message: str


# ---- links: gateway → worker ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop this attempt and every older one, in whatever phase; a tombstone covers ids not seen yet."""

    request_id: RequestId
    attempt: int


# ---- links: prompt worker ↔ token worker ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """prompt → token: this request is being prefilled; grant KV blocks for it. The token worker takes every size from
    the request and its own model, none from the sender. `transfer_id` (48 random bits) prefixes all its tags."""

    request: Submitted
    transfer_id: int
    kv_address: bytes
    mode: PushMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """token → prompt: blocks are reserved and receives are posted under `transfer_id`; push."""

    request_id: RequestId
    attempt: int
    transfer_id: int
    kv_address: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """token → prompt: this hand-off will not happen here (too large, draining, unknown to me)."""

    request_id: RequestId
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvComplete:
    """prompt → token: every slice was pushed. `checksums[i]` is the xxh3-64 of slice i (shared.kv.layout) as it left;
    `first_token` is output token number `request.emitted`, sampled by the prompt worker."""

    request_id: RequestId
    attempt: int
    transfer_id: int
    checksums: tuple[int, ...]
    first_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvAccepted:
    """token → prompt: all layers are here, bit for bit; the prompt worker frees its blocks."""

    request_id: RequestId
    attempt: int
    transfer_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDamaged:
    """token → prompt: these slices arrived with another checksum; push them again under `transfer_id` (a new one)."""

    request_id: RequestId
    attempt: int
    transfer_id: int
    slices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """prompt → token: forget this reservation (the request ended, was cancelled, or decodes elsewhere)."""

    request_id: RequestId
    attempt: int


StreamMessage = (
    Submitted | Assigned | Placed | Unplaceable | WorkerReport | ServiceReport | SetRole | DrainWorker | RoleChanged
)
LinkMessage = (
    Tokens | HandedOff | Failed | Cancel | Reserve | Granted | Refused | KvComplete | KvAccepted | KvDamaged | Release
)
Message = StreamMessage | LinkMessage
