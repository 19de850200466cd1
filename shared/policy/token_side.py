"""The token worker's side of the KV hand-off (sequence chart in shared.policy.handoff)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shared.ids import Address, Attempt
from shared.kv.blocks import BlockAllocator, blocks_for
from shared.kv.layout import KvShape, cut
from shared.policy import handoff as h
from shared.policy.demand import AnswerLength
from shared.policy.sequence import rank_of
from shared.wire.messages import Granted, KvAccepted, KvComplete, KvDamaged, Refused, Release, Reserve, Submitted
from shared.wire.terms import PushMode

IN_FLIGHT_BYTES = 256 << 20  # staging buffers of all transfers under way; one transfer is always let in


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A Reserve, and who sent it."""

    peer: Address
    reserve: Reserve


Event = (
    Reserved
    | h.ReceivesPosted
    | h.SliceArrived
    | h.TransferFailed
    | h.PeerGone
    | h.Cancelled
    | h.Ticked
    | KvComplete
    | Release
)


@dataclass(slots=True)
class Incoming:
    """`transfer_id` is 0 while it waits for blocks; `damaged` counts the rounds that had to be pushed again."""

    request: Submitted
    peer: Address
    kv_address: bytes
    mode: PushMode
    slices: int
    size_bytes: int
    offered_id: int
    arrived_at: float  # at a gateway, on this worker's clock
    transfer_id: int = 0
    arrived: dict[int, int] = field(default_factory=dict)
    complete: KvComplete | None = None
    damaged: int = 0
    resending: tuple[int, ...] = ()
    deadline: float = float("inf")


class TokenSide:
    """`handle(event, now)` returns the commands to carry out. Blocks are taken from `blocks` at the grant and belong
    to the request from then on: until it is forgotten here, or, once admitted, until it ends. Slices land in staging
    buffers and are copied into the blocks, so blocks can be given back at once, whatever is still under way.

    fresh_transfer_id: iterator of random 48-bit numbers, handed in so that nothing here draws one. admits: whether a
    request of this rank may take memory now, or others of this worker come first. growth: how many blocks more the
    running decodes are expected to need; `answers` says so of those that come.
    """

    def __init__(
        self, blocks: BlockAllocator, shape: KvShape, *, max_model_len: int, fresh_transfer_id: Iterator[int],
        answers: AnswerLength, admits: Callable[[float], bool], growth: Callable[[], int],
    ) -> None:  # fmt: skip
        self._blocks = blocks
        self._shape = shape
        self._max_model_len = max_model_len
        self._fresh = fresh_transfer_id
        self._answers = answers
        self._admits = admits
        self._growth = growth
        self._incoming: dict[Attempt, Incoming] = {}
        self.draining = False

    def __contains__(self, key: Attempt) -> bool:
        return key in self._incoming

    def __len__(self) -> int:
        return len(self._incoming)

    def expects(self, key: Attempt, transfer_id: int) -> bool:
        """Whether a slice that arrives under this transfer id may be written into the blocks of this attempt."""
        return key in self._incoming and self._incoming[key].transfer_id == transfer_id

    def requests(self) -> list[Submitted]:
        return [i.request for i in self._incoming.values()]

    def handle(self, event: Event, now: float) -> list[h.Command]:
        return list(self._handle(event, now))

    def _handle(self, event: Event, now: float) -> Iterator[h.Command]:
        match event:
            case Reserved():
                yield from self._reserve(event, now)
            case h.PeerGone(peer=peer):
                for incoming in [i for i in self._incoming.values() if i.peer == peer]:
                    yield h.CloseEndpoint(kv_address=incoming.kv_address)
                    self._forget(incoming)
            case h.Ticked():
                for incoming in [i for i in self._incoming.values() if now > i.deadline]:
                    yield from self._time_out(incoming)
            case _:
                if (known := self._incoming.get(h.key_of(event))) is not None:
                    yield from self._advance(known, event, now)
        yield from self._grant(now)

    def _reserve(self, event: Reserved, now: float) -> Iterator[h.Command]:
        request, reserve = event.reserve.request, event.reserve
        if request.key in self._incoming:
            return
        need = blocks_for(request.prompt_tokens + 1, self._blocks.block_size)
        if self.draining or need > self._blocks.total or request.prompt_tokens >= self._max_model_len:
            reason = "draining" if self.draining else f"{request.prompt_tokens} tokens do not fit here"
            yield _refuse(request, event.peer, reason)
            return
        known = any(reserve.transfer_id in (i.offered_id, i.transfer_id) for i in self._incoming.values())
        if known or not h.usable(reserve.transfer_id):
            yield _refuse(request, event.peer, "unusable transfer id")
            return
        slices = cut(reserve.mode, request.prompt_tokens, self._shape)
        self._incoming[request.key] = Incoming(
            request=request,
            peer=event.peer,
            kv_address=reserve.kv_address,
            mode=reserve.mode,
            slices=len(slices),
            size_bytes=sum(s.size_bytes(self._shape) for s in slices),
            offered_id=reserve.transfer_id,
            arrived_at=now - request.waited_s,
        )

    def _grant(self, now: float) -> Iterator[h.Command]:
        """FCFS: whoever came first gets blocks first; nobody overtakes."""
        for incoming in self._incoming.values():
            if incoming.transfer_id:
                continue
            in_flight = sum(i.size_bytes for i in self._incoming.values() if i.transfer_id)
            if in_flight and in_flight + incoming.size_bytes > IN_FLIGHT_BYTES:
                return
            rank = rank_of(incoming.request, incoming.arrived_at)
            if not self._admits(rank) or not self._take_blocks(incoming.request):
                return
            incoming.transfer_id = incoming.offered_id
            incoming.deadline = now + h.IDLE_S
            yield self._post(incoming, tuple(range(incoming.slices)))

    def _take_blocks(self, request: Submitted) -> bool:
        """Blocks for the prompt, if there would be enough for all that is expected of it and of those let in before;
        if nothing is expected of these, for the prompt."""
        granted = (i.request for i in self._incoming.values() if i.transfer_id)
        growing = self._growth() + sum(self._growth_of(r) for r in granted)
        if growing and growing + self._growth_of(request) > self._blocks.free_blocks:
            return False
        return self._blocks.reach(request.key, request.prompt_tokens + 1)

    def _growth_of(self, request: Submitted) -> int:
        at_end = self._answers.tokens_at_end(request.prompt_tokens, 0, request.tokens_left)
        return blocks_for(at_end, self._blocks.block_size) - len(self._blocks.owned(request.key))

    def _post(self, incoming: Incoming, indices: tuple[int, ...]) -> h.Command:
        return h.PostReceives(
            request=incoming.request,
            transfer_id=incoming.transfer_id,
            kv_address=incoming.kv_address,
            mode=incoming.mode,
            indices=indices,
        )

    def _advance(self, incoming: Incoming, event: Event, now: float) -> Iterator[h.Command]:
        current = incoming.transfer_id
        match event:
            case h.ReceivesPosted(transfer_id=transfer_id) if transfer_id == current:
                yield h.Send(peer=incoming.peer, message=self._ready(incoming, event.kv_address))
            case h.SliceArrived(transfer_id=transfer_id) if transfer_id == current:
                incoming.arrived[event.index] = event.checksum
                incoming.deadline = (
                    max(incoming.deadline, now + h.IDLE_S) if not incoming.complete else incoming.deadline
                )
                yield from self._verify(incoming, now)
            case KvComplete(transfer_id=transfer_id) if transfer_id == current:
                incoming.complete = event
                incoming.deadline = now + h.transfer_deadline_s(incoming.size_bytes)
                yield from self._verify(incoming, now)
            case h.TransferFailed(transfer_id=transfer_id) if transfer_id == current:
                yield _refuse(incoming.request, incoming.peer, event.reason)
                self._forget(incoming)
            case Release() | h.Cancelled():
                self._forget(incoming)
            case _:
                pass

    def _ready(self, incoming: Incoming, kv_address: bytes) -> Granted | KvDamaged:
        request = incoming.request
        if incoming.resending:
            return KvDamaged(
                request_id=request.request_id,
                attempt=request.attempt,
                transfer_id=incoming.transfer_id,
                slices=incoming.resending,
            )
        return Granted(
            request_id=request.request_id,
            attempt=request.attempt,
            transfer_id=incoming.transfer_id,
            kv_address=kv_address,
        )

    def _verify(self, incoming: Incoming, now: float) -> Iterator[h.Command]:
        complete = incoming.complete
        if complete is None or len(incoming.arrived) < incoming.slices:
            return
        if len(complete.checksums) != incoming.slices:
            yield _refuse(incoming.request, incoming.peer, "wrong number of checksums")
            self._forget(incoming)
            return
        bad = tuple(i for i, checksum in enumerate(complete.checksums) if incoming.arrived[i] != checksum)
        if not bad:
            del self._incoming[incoming.request.key]
            yield h.Send(peer=incoming.peer, message=_accept(incoming))
            yield h.Admit(
                request=incoming.request,
                peer=incoming.peer,
                first_token=complete.first_token,
                arrived_at=incoming.arrived_at,
            )
        else:
            yield from self._ask_again(incoming, bad, now)

    def _ask_again(self, incoming: Incoming, bad: tuple[int, ...], now: float) -> Iterator[h.Command]:
        incoming.damaged += 1
        if incoming.damaged > h.MAX_DAMAGED:
            yield _refuse(incoming.request, incoming.peer, "KV arrived damaged again and again")
            self._forget(incoming)
            return
        for index in bad:
            del incoming.arrived[index]
        incoming.transfer_id = next(self._fresh)
        incoming.resending = bad
        incoming.complete = None
        incoming.deadline = now + h.IDLE_S
        yield self._post(incoming, bad)

    def _time_out(self, incoming: Incoming) -> Iterator[h.Command]:
        yield h.CloseEndpoint(kv_address=incoming.kv_address)
        yield _refuse(incoming.request, incoming.peer, "the transfer stood still")
        self._forget(incoming)

    def _forget(self, incoming: Incoming) -> None:
        del self._incoming[incoming.request.key]
        self._blocks.release(incoming.request.key)

    def check(self) -> None:
        for key, incoming in self._incoming.items():
            assert bool(incoming.transfer_id) == bool(self._blocks.owned(key)), "granted without blocks"
            assert len(incoming.arrived) <= incoming.slices


def _accept(incoming: Incoming) -> KvAccepted:
    request = incoming.request
    return KvAccepted(request_id=request.request_id, attempt=request.attempt, transfer_id=incoming.transfer_id)


def _refuse(request: Submitted, peer: Address, reason: str) -> h.Command:
    return h.Send(peer=peer, message=Refused(request_id=request.request_id, attempt=request.attempt, reason=reason))
