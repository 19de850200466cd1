"""Cluster level decisions on record, and taken again: a decider that is told the same in the same order says the same.

A journal is an Opening and then a Record of every call on the deciders of one process. No record holds what users
typed: of a prompt it keeps the number of tokens. Floats are kept bit by bit and answers compared as their `repr`, so a
last bit that differs is a difference.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from shared.errors import BadFrame
from shared.ids import EntryId, ServiceId, WorkerId
from shared.policy.membership import Membership
from shared.policy.pooling import Pooling
from shared.policy.routing import DEFAULT_LIMITS, Limits, Placement, place
from shared.policy.view import View
from shared.wire.codec import decode, encode
from shared.wire.messages import Placed, StreamMessage, Submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Whose deciders they are. Of a router: its limits, and its id salts its view."""

    service: str
    service_id: ServiceId
    limits: Limits = DEFAULT_LIMITS


class Call(StrEnum):
    """A router's are the first four, a pool manager's APPLY and the last three. Those of DECISIONS have an answer."""

    APPLY = "apply"
    PLACE = "place"
    FORESEE = "foresee"
    RETRACT = "retract"
    DECIDE = "decide"
    GONE = "gone"
    SWEPT = "swept"


DECISIONS = frozenset({Call.PLACE, Call.DECIDE, Call.GONE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """at: seconds on the clock of that process. message: as on the wire, without the `prompt_tokens` ids of a prompt;
    empty if the call has none. subject: id of the entry that is applied, or of the worker that was swept."""

    call: Call
    at: float
    message: bytes
    prompt_tokens: int
    subject: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`number` of the record, from 1."""

    number: int
    record: Record
    recomputed: str


def recorded(
    call: Call, at: float, message: StreamMessage | None = None, *, subject: str = "", answer: object = None
) -> Record:
    said, prompt_tokens = _said(answer, message), 0
    if isinstance(message, Submitted):
        prompt_tokens = message.prompt_tokens
        message = replace(message, token_ids=(), sampling=replace(message.sampling, stop_token_ids=()))
    packed = b"" if message is None else encode(message)
    return Record(call=call, at=at, message=packed, prompt_tokens=prompt_tokens, subject=subject, answer=said)


class Replay:
    """`take` every record of a journal in order. It goes on after a difference, in its own state."""

    def __init__(self, opening: Opening) -> None:
        if opening.service not in DECIDERS:
            raise BadFrame(f"{opening.service!r} has no deciders that could be replayed")
        self._deciders = DECIDERS[opening.service](opening)
        self.records = 0
        self.decisions = 0

    def take(self, record: Record) -> Difference | None:
        self.records += 1
        self.decisions += record.call in DECISIONS
        message = _message(record)
        try:
            recomputed = _said(self._deciders.answer(record, message), message)
        except BadFrame:
            raise
        except Exception as error:  # live, no decider raised: whatever makes it do so now is a difference
            recomputed = f"raises {error!r}"
        if recomputed == record.answer:
            return None
        return Difference(number=self.records, record=record, recomputed=recomputed)


class _RouterDeciders:
    def __init__(self, opening: Opening) -> None:
        self._limits = opening.limits
        self._view = View(salt=opening.service_id)

    def answer(self, record: Record, message: StreamMessage | None) -> object:
        match record.call, message:
            case Call.APPLY, message if message is not None:
                self._view.apply(message, EntryId(record.subject), record.at)
            case Call.PLACE, Submitted():
                return place(self._view, message, record.at, self._limits)
            case Call.FORESEE, Placed():
                self._view.foresee(message)
            case Call.RETRACT, Placed():
                self._view.retract(message)
            case _:
                raise BadFrame(f"a router does not {record.call} {type(message).__name__}")
        return None


class _PoolManagerDeciders:
    def __init__(self, opening: Opening) -> None:
        self._view = View()
        self._membership = Membership(self._view)
        self._pooling = Pooling(self._view)

    def answer(self, record: Record, message: StreamMessage | None) -> object:
        match record.call, message:
            case Call.APPLY, message if message is not None:
                self._view.apply(message, EntryId(record.subject), record.at)
                self._pooling.apply(message, EntryId(record.subject), record.at)
            case Call.DECIDE, None:
                return self._pooling.decide(record.at)
            case Call.GONE, None:
                return self._membership.gone(record.at)
            case Call.SWEPT, None:
                self._membership.swept(WorkerId(record.subject))
            case _:
                raise BadFrame(f"a pool manager does not {record.call} {type(message).__name__}")
        return None


DECIDERS: dict[str, type[_RouterDeciders | _PoolManagerDeciders]] = {
    "router": _RouterDeciders,
    "pool_manager": _PoolManagerDeciders,
}


def _message(record: Record) -> StreamMessage | None:
    """With a prompt of the length that it had: no decision depends on which tokens it is of."""
    if not record.message:
        return None
    message = decode(record.message)
    if not isinstance(message, StreamMessage):
        raise BadFrame(f"{type(message).__name__} travels on no stream")
    return replace(message, token_ids=(0,) * record.prompt_tokens) if isinstance(message, Submitted) else message


def _said(answer: object, message: StreamMessage | None) -> str:
    """A placement as what goes out of it, and what it predicts."""
    if isinstance(answer, Placement) and isinstance(message, Submitted):
        answer = answer.placed(message), answer.ttft_s, answer.tbt_s
    return "" if answer is None else repr(answer)
