"""The KV hand-off between prompt and token worker, as two pure deciders: events in, commands out.

    prompt side                                   token side
    PrefillStarted ── Reserve ──────────────────▶ queue FCFS for blocks
                   ◀───────────────── Granted ─── blocks reserved, receives posted
    SliceReady i   ── Push i ═══════════════════▶ SliceArrived i (imported into its pages)
    FirstToken     ── KvComplete ───────────────▶ all slices here and checksums equal?
                   ◀────── KvAccepted, or KvDamaged (push those slices again under a new transfer id)
    blocks freed                                  decode

Ownership of blocks:  prompt side  from prefill until KvAccepted (or until nobody wants the request)
                      token side   from Granted until the request ends there

A prompt may be computed in several pieces. PrefillStarted comes with the first; slice i, a layer of a token range, is
ready during the step whose piece reaches the end of that range.

The wire messages are the events; the few local ones are below. Waiting is bounded: a request that is not granted
within GRANT_WAIT_S of its prefill decodes where it lies; a grant that is not used expires after IDLE_S; a transfer that
stands still is given up; and the loss of the peer's link ends everything with it.

No two workers wait for each other's KV space. A prompt takes the blocks of all its tokens with its first piece, so a
prompt under way needs memory nowhere but where it goes. Prompts start only within a share of a worker's blocks (see
BatchLimits); all others are held by decodes, which end by themselves, and by grants, which wait for bytes that are
already in the sender's memory or will be without further memory. So whoever is first in a grant queue gets its blocks
when some of these end; it stands back for an older prompt of that worker only while no KV of that worker waits for a
grant itself. Where that share was exceeded, by a lone prompt or because decodes grew, a circle could close
through decodes that wait for a block; GRANT_WAIT_S cuts it: the waiting hand-off becomes a decode of its own worker,
where the youngest is preempted if the oldest lacks a block.
"""

from dataclasses import dataclass

from shared.ids import Address, Attempt
from shared.wire.messages import Granted, KvAccepted, KvComplete, KvDamaged, LinkMessage, Refused, Release, Submitted
from shared.wire.terms import PushMode

GRANT_WAIT_S = 5.0
IDLE_S = 60.0  # no slice for so long while the prompt is still being computed
TRANSFER_BASE_S = 2.0
TRANSFER_BYTES_PER_S = 50e6  # slowest link that is waited for, once every slice has left
MAX_DAMAGED = 2  # times that damaged slices are pushed again before the hand-off is given up


def transfer_deadline_s(size_bytes: int) -> float:
    return TRANSFER_BASE_S + size_bytes / TRANSFER_BYTES_PER_S


def usable(transfer_id: int) -> bool:
    """Whether a transfer id from the wire can prefix tags."""
    return 0 < transfer_id < 1 << 48


# ---- local events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillStarted:
    request: Submitted
    peer: Address
    transfer_id: int
    mode: PushMode
    slices: int
    size_bytes: int
    kv_address: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceReady:
    """The KV of slice `index` (see shared.kv.layout) lies in the prompt worker's pages."""

    key: Attempt
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePushed:
    """The slice has been handed to the transport; `checksum` is that of the bytes as they left the pages."""

    key: Attempt
    transfer_id: int
    index: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Prefill is done. `last`: the request ends with this token, nothing needs to arrive."""

    key: Attempt
    token: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivesPosted:
    key: Attempt
    transfer_id: int
    kv_address: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceArrived:
    key: Attempt
    transfer_id: int
    index: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed:
    """The transport's endpoint to this peer broke while the transfer used it."""

    key: Attempt
    transfer_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    peer: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    key: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed; also sent when blocks became free."""


def key_of(event: "Keyed | HandoffMessage") -> Attempt:
    """The attempt that an event is about."""
    match event:
        case Granted() | Refused() | KvAccepted() | KvDamaged() | KvComplete() | Release():
            return event.request_id, event.attempt
        case _:
            return event.key


# ---- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    peer: Address
    message: LinkMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    request: Submitted
    transfer_id: int
    kv_address: bytes
    mode: PushMode
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Send anything of the right size in place of these slices: nobody wants them any more, but their receives are
    posted, and a posted receive ends in no other way."""

    request: Submitted
    transfer_id: int
    kv_address: bytes
    mode: PushMode
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostReceives:
    """Post receives for these slices under a transfer id, then answer with ReceivesPosted."""

    request: Submitted
    transfer_id: int
    kv_address: bytes
    mode: PushMode
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseEndpoint:
    """Fail everything under way with this peer: a transfer missed its deadline and may still write somewhere."""

    kv_address: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOffDone:
    """The token worker has it all: free the blocks, tell the gateway what it took."""

    key: Attempt
    mode: PushMode
    size_bytes: int
    transfer_s: float  # from the first slice pushed to the acknowledgement
    exposed_s: float  # from the first token (all layers computed) to the acknowledgement
    resent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeHere:
    """The hand-off will not happen, the KV is still here: go on on this worker."""

    key: Attempt
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Every slice lies intact in the blocks of this request: decode it."""

    request: Submitted
    peer: Address
    first_token: int
    arrived_at: float  # at a gateway, on this worker's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Free what the attempt holds; the gateway is told `failure` (and may submit again), if there is one."""

    request: Submitted
    failure: str | None


Keyed = SliceReady | SlicePushed | FirstToken | ReceivesPosted | SliceArrived | TransferFailed | Cancelled
HandoffMessage = Granted | Refused | KvAccepted | KvDamaged | KvComplete | Release
Command = Send | Push | Fill | PostReceives | CloseEndpoint | HandOffDone | DecodeHere | Admit | Forget
