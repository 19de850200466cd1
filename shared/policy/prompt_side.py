"""The prompt worker's side of the KV hand-off (sequence chart in shared.policy.handoff)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.ids import Address, Attempt
from shared.policy import handoff as h
from shared.wire.messages import Granted, KvAccepted, KvComplete, KvDamaged, Refused, Release, Reserve, Submitted
from shared.wire.terms import PushMode

Event = (
    h.PrefillStarted
    | h.SliceReady
    | h.SlicePushed
    | h.FirstToken
    | h.TransferFailed
    | h.PeerGone
    | h.Cancelled
    | h.Ticked
    | Granted
    | Refused
    | KvAccepted
    | KvDamaged
)


@dataclass(slots=True)
class Outgoing:
    """`ready`: how many slices lie in the pages. `to_push`: those of them that wait for the grant (or for a retry).
    `pushed`: those handed to the transport under the present transfer id."""

    request: Submitted
    peer: Address
    transfer_id: int
    mode: PushMode
    slices: int
    size_bytes: int
    to_push: list[int] = field(default_factory=list)
    pushed: set[int] = field(default_factory=set)
    ready: int = 0
    granted_by: bytes | None = None
    pushed_at: float = 0.0  # when its first slice left
    checksums: dict[int, int] = field(default_factory=dict)
    first_token: int | None = None
    prefilled_at: float = 0.0
    completed_at: float | None = None
    resent: int = 0


class PromptSide:
    """`handle(event, now)` returns the commands to carry out.

    A hand-off that ended early is remembered for a while (`_ended`): a grant may have crossed the Release on its way,
    or come from a peer that was taken for lost; it is told again, and receives that it posted are filled.
    """

    def __init__(self) -> None:
        self._outgoing: dict[Attempt, Outgoing] = {}
        self._ended: dict[Attempt, tuple[float, Outgoing]] = {}

    def __contains__(self, key: Attempt) -> bool:
        return key in self._outgoing

    def __len__(self) -> int:
        return len(self._outgoing)

    @property
    def waits_for_room(self) -> bool:
        """Whether a prompt is computed whose KV no token worker has granted room for."""
        return any(o.first_token is not None and o.granted_by is None for o in self._outgoing.values())

    def handle(self, event: Event, now: float) -> list[h.Command]:
        return list(self._handle(event, now))

    def _handle(self, event: Event, now: float) -> Iterator[h.Command]:
        match event:
            case h.PrefillStarted():
                yield from self._start(event, now)
            case h.PeerGone(peer=peer):
                for out in [o for o in self._outgoing.values() if o.peer == peer]:
                    yield from self._lose(out, now)
            case h.Ticked():
                self._ended = {key: (at, out) for key, (at, out) in self._ended.items() if now < at + h.IDLE_S}
                for out in list(self._outgoing.values()):
                    yield from self._check_time(out, now)
            case _:
                if (known := self._outgoing.get(h.key_of(event))) is not None:
                    yield from self._advance(known, event, now)
                elif isinstance(event, Granted | KvDamaged):
                    yield from self._answer_ended(event)

    def _start(self, event: h.PrefillStarted, now: float) -> Iterator[h.Command]:
        request = event.request
        self._outgoing[request.key] = Outgoing(
            request=request,
            peer=event.peer,
            transfer_id=event.transfer_id,
            mode=event.mode,
            slices=event.slices,
            size_bytes=event.size_bytes,
        )
        yield h.Send(
            peer=event.peer,
            message=Reserve(
                request=request, transfer_id=event.transfer_id, kv_address=event.kv_address, mode=event.mode
            ),
        )

    def _advance(self, out: Outgoing, event: Event, now: float) -> Iterator[h.Command]:
        match event:
            case h.SliceReady(index=index):
                out.ready += 1
                out.to_push.append(index)
                yield from self._push(out, now)
            case Granted(transfer_id=transfer_id) if transfer_id == out.transfer_id:
                out.granted_by = event.kv_address
                yield from self._push(out, now)
            case h.SlicePushed(transfer_id=transfer_id) if transfer_id == out.transfer_id:
                out.checksums[event.index] = event.checksum
                yield from self._complete(out, now)
            case h.FirstToken(token=token, last=last):
                out.first_token, out.prefilled_at = token, now
                yield from self._end_early(out, now) if last else self._complete(out, now)
            case KvAccepted(transfer_id=transfer_id) if transfer_id == out.transfer_id:
                yield from self._accept(out, now)
            case KvDamaged() if _sensible(out, event):
                yield from self._push_again(out, event, now)
            case Refused(reason=reason):
                yield from self._withdraw(out, now, fill=False)
                yield h.DecodeHere(key=out.request.key, reason=reason)
            case h.TransferFailed(transfer_id=transfer_id) if transfer_id == out.transfer_id:
                yield from self._withdraw(out, now, fill=False)
                yield h.DecodeHere(key=out.request.key, reason=event.reason)
            case h.Cancelled():
                yield from self._withdraw(out, now)
                yield h.Forget(request=out.request, failure=None)
            case _:
                pass

    def _push(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        if out.granted_by is None or not out.to_push:
            return
        out.pushed_at = out.pushed_at or now
        waiting, out.to_push = out.to_push, []
        out.pushed.update(waiting)
        for index in waiting:
            yield h.Push(
                request=out.request,
                transfer_id=out.transfer_id,
                kv_address=out.granted_by,
                mode=out.mode,
                index=index,
            )

    def _complete(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        if out.first_token is None or len(out.checksums) < out.slices:
            return
        out.completed_at = now
        yield h.Send(
            peer=out.peer,
            message=KvComplete(
                request_id=out.request.request_id,
                attempt=out.request.attempt,
                transfer_id=out.transfer_id,
                checksums=tuple(out.checksums[i] for i in range(out.slices)),
                first_token=out.first_token,
            ),
        )

    def _push_again(self, out: Outgoing, damaged: KvDamaged, now: float) -> Iterator[h.Command]:
        out.resent += len(damaged.slices)
        out.transfer_id = damaged.transfer_id
        for index in damaged.slices:
            out.checksums.pop(index, None)
        out.pushed = set(range(out.slices)) - set(damaged.slices)
        out.to_push = list(damaged.slices)
        out.completed_at = None
        yield from self._push(out, now)

    def _accept(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        del self._outgoing[out.request.key]
        yield h.HandOffDone(
            key=out.request.key,
            mode=out.mode,
            size_bytes=out.size_bytes,
            transfer_s=now - out.pushed_at,
            exposed_s=now - out.prefilled_at,
            resent=out.resent,
        )

    def _end_early(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        yield from self._withdraw(out, now)
        yield h.Forget(request=out.request, failure=None)

    def _lose(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        del self._outgoing[out.request.key]
        self._ended[out.request.key] = (now, out)
        if out.granted_by is not None:
            yield h.CloseEndpoint(kv_address=out.granted_by)
        yield h.Forget(request=out.request, failure="the token worker is gone")

    def _withdraw(self, out: Outgoing, now: float, *, fill: bool = True) -> Iterator[h.Command]:
        """End the hand-off before its time: tell the peer, and fill the receives that it has posted. There are none
        left after a refusal or with a broken endpoint, and what nobody receives would lie in the peer for ever."""
        del self._outgoing[out.request.key]
        self._ended[out.request.key] = (now, out)
        yield _release(out)
        if fill and out.granted_by is not None:
            yield self._fill(out, set(range(out.slices)) - out.pushed, out.transfer_id, out.granted_by)

    def _answer_ended(self, event: Granted | KvDamaged) -> Iterator[h.Command]:
        """Whoever stood still while we took it for lost has not heard of the end, nor has who lost our Release."""
        _, out = self._ended.get(h.key_of(event), (0.0, None))
        if out is None:
            return
        yield _release(out)
        if isinstance(event, Granted):
            yield self._fill(out, set(range(out.slices)), event.transfer_id, event.kv_address)
        elif out.granted_by is not None and _sensible(out, event):
            yield self._fill(out, set(event.slices), event.transfer_id, out.granted_by)

    def _fill(self, out: Outgoing, indices: set[int], transfer_id: int, kv_address: bytes) -> h.Command:
        return h.Fill(
            request=out.request,
            transfer_id=transfer_id,
            kv_address=kv_address,
            mode=out.mode,
            indices=tuple(sorted(indices)),
        )

    def _check_time(self, out: Outgoing, now: float) -> Iterator[h.Command]:
        if out.first_token is None:
            return
        waiting_for_grant = out.granted_by is None and now > out.prefilled_at + h.GRANT_WAIT_S
        limit = 2 * h.transfer_deadline_s(out.size_bytes)
        unanswered = out.completed_at is not None and now > out.completed_at + limit
        if waiting_for_grant or unanswered:
            yield from self._withdraw(out, now)
            reason = "no grant in time" if waiting_for_grant else "no acknowledgement in time"
            yield h.DecodeHere(key=out.request.key, reason=reason)

    def check(self) -> None:
        for out in self._outgoing.values():
            assert out.ready <= out.slices and len(out.checksums) <= out.slices
            assert out.granted_by is None or not out.to_push or out.resent, "granted, yet slices wait"


def _release(out: Outgoing) -> h.Command:
    return h.Send(peer=out.peer, message=Release(request_id=out.request.request_id, attempt=out.request.attempt))


def _sensible(out: Outgoing, damaged: KvDamaged) -> bool:
    """A frame that names slices or an id that cannot be is none."""
    return h.usable(damaged.transfer_id) and all(0 <= index < out.slices for index in damaged.slices)
