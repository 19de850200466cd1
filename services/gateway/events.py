"""What the session decider hears and what it orders, besides the messages of the wire."""

from dataclasses import dataclass
from enum import StrEnum

from shared.ids import Address, RequestId, ServiceId, WorkerId
from shared.link.port import Lost, Received
from shared.wire.messages import LinkMessage, Placed, Submitted, Unplaceable
from shared.wire.terms import Finish, Sampling, State


class Outcome(StrEnum):
    """How a request ended; the label of `requests_total`."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The gateway as others know it."""

    gateway_id: ServiceId
    address: Address


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A validated request has come in. `prompt` is what the first attempt computes; `priority`: see Submitted."""

    request_id: RequestId
    prompt: tuple[int, ...]
    sampling: Sampling
    time_left_s: float
    model: str
    priority: int = 0

    def first_attempt(self, identity: Identity) -> Submitted:
        return Submitted(
            request_id=self.request_id,
            attempt=1,
            token_ids=self.prompt,
            emitted=0,
            sampling=self.sampling,
            time_left_s=self.time_left_s,
            waited_s=0.0,
            gateway_id=identity.gateway_id,
            reply_to=identity.address,
            model=self.model,
            priority=self.priority,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLeft:
    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class StopStringMet:
    """The answer is complete although the workers do not know it."""

    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitFailed:
    """The broker did not take this attempt (it may have, and its answer was lost)."""

    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSilent:
    """The broker stopped answering: missing placements mean nothing now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerBack: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeard:
    """A worker's report was written `at` this time of the decider's clock."""

    worker_id: WorkerId
    state: State
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """The time that `Sessions.wake_at` named has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """The process ends now: whatever still runs gets an error."""


ClientEvent = Opened | ClientLeft | StopStringMet
OwnEvent = ClientEvent | SubmitFailed | BrokerSilent | BrokerBack | WorkerHeard | Woke | Stopping
Event = OwnEvent | Received | Lost | Placed | Unplaceable


# ---- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    message: Submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    peer: Address
    message: LinkMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    peer: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """The next output tokens for the client, in order and each once. `finish` is the end."""

    request_id: RequestId
    token_ids: tuple[int, ...]
    finish: Finish | None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The request ends without an answer. `message` is for the client."""

    request_id: RequestId
    outcome: Outcome
    status: int
    code: str
    message: str
    retry_after_s: float | None = None


Command = Submit | Send | Watch | Deliver | End
