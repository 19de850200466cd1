"""Everything that reaches a worker from outside: its stream, the placements, its links, and the time."""

import asyncio

import structlog

from shared.broker.port import Entry
from shared.ids import Address, EntryId
from shared.link.port import Lost, Received
from shared.policy import handoff as h
from shared.policy.sequence import Sequence
from shared.policy.token_side import Reserved
from shared.runtime.presence import follow
from shared.wire.messages import (
    Assigned,
    Cancel,
    Granted,
    KvAccepted,
    KvComplete,
    KvDamaged,
    LinkMessage,
    Placed,
    Refused,
    Release,
    Reserve,
    Submitted,
)
from shared.wire.reports import DrainWorker, SetRole
from shared.wire.streams import PLACEMENTS, worker_stream
from shared.wire.terms import State
from shared.worker.orders import on_drain, on_set_role
from shared.worker.worker import Worker

log = structlog.get_logger()

TICK_S = 0.25
FINISHED_LATELY_S = 10.0


async def read_streams(worker: Worker) -> None:
    """Prompts and orders from the worker's own stream, and what is coming, from `placements`."""

    def on_entry(entry: Entry) -> None:
        match entry.message:
            case Assigned():
                on_assigned(worker, entry.message, entry.waited_s)
            case Placed():
                on_placed(worker, entry.message, entry.entry_id)
            case SetRole():
                on_set_role(worker, entry.message)
            case DrainWorker():
                on_drain(worker, entry.message)
            case _:
                log.warning("unexpected message", kind=type(entry.message).__name__, stream=entry.stream)

    await follow(worker.broker, on_entry, new=[PLACEMENTS], own=worker_stream(worker.options.worker_id))


async def read_links(worker: Worker) -> None:
    while True:
        event = await worker.links.receive()
        match event:
            case Received():
                _on_frame(worker, event)
            case Lost():
                on_peer_lost(worker, event.peer)


def _on_frame(worker: Worker, received: Received) -> None:
    message: LinkMessage = received.message
    match message:
        case Cancel():
            worker.cancel_attempts(message.request_id, message.attempt)
        case Reserve():
            on_reserve(worker, received.peer, message)
        case Granted() | Refused() | KvAccepted() | KvDamaged():
            worker.feed_prompt(message)
        case KvComplete():
            on_kv_complete(worker, received.peer, message)
        case Release():
            on_release(worker, received.peer, message)
        case _:
            log.warning("unexpected frame", kind=type(message).__name__, peer=received.peer)


async def tick(worker: Worker) -> None:
    """Let time pass for the deciders; when the last request has gone, make sure that nothing stays behind."""
    was_idle = True
    while True:
        await asyncio.sleep(TICK_S)
        worker.coming.expire(worker.clock.now())
        worker.feed_prompt(h.Ticked())
        worker.feed_token(h.Ticked())
        if worker.idle and not was_idle:
            worker.check()
        was_idle = worker.idle


# ---- reactions ------------------------------------------------------------------------------------------------------


def on_placed(worker: Worker, placed: Placed, entry_id: EntryId) -> None:
    worker.coming.see(placed, entry_id, worker.clock.now())
    if worker.fence.refuses(key := (placed.request_id, placed.attempt)):
        worker.coming.arrived(key)


def on_assigned(worker: Worker, assigned: Assigned, waited_s: float) -> None:
    """A prompt for this worker. A second delivery, or an attempt that is over already, changes nothing."""
    request = assigned.request
    if not _is_new(worker, request):
        return
    if worker.state is State.DRAINING:
        worker.report_failure(request, "worker_draining", "this worker is shutting down")
        return
    here = assigned.token_worker == worker.options.worker_id
    sequence = Sequence(
        request=request,
        arrived_at=worker.clock.now() - request.waited_s - waited_s,
        token_worker=None if here else assigned.token_address,
    )
    worker.sequences[request.key] = sequence
    worker.batcher.enqueue(sequence)
    worker.links.watch(request.reply_to)
    worker.wake.set()


def on_reserve(worker: Worker, peer: Address, reserve: Reserve) -> None:
    if _is_new(worker, reserve.request):
        worker.links.watch(reserve.request.reply_to)
        worker.links.watch(peer)
        worker.feed_token(Reserved(peer=peer, reserve=reserve))


def _is_new(worker: Worker, request: Submitted) -> bool:
    """Neither here nor over; from now on, older attempts are."""
    worker.coming.arrived(request.key)
    if request.key in worker.sequences or worker.fence.refuses(request.key):
        return False
    worker.cancel_attempts(request.request_id, request.attempt - 1)
    return True


def on_kv_complete(worker: Worker, peer: Address, complete: KvComplete) -> None:
    """A prompt worker that closes a hand-off unknown here must not wait for an answer."""
    if h.key_of(complete) in worker.token_side:
        worker.feed_token(complete)
    else:
        refused = Refused(request_id=complete.request_id, attempt=complete.attempt, reason="unknown here")
        worker.links.send(peer, refused)


def on_release(worker: Worker, peer: Address, release: Release) -> None:
    """If the acknowledgement was lost, the prompt worker decodes by itself, and the sequence must end here."""
    key = h.key_of(release)
    worker.coming.arrived(key)
    worker.feed_token(release)
    sequence = worker.sequences.get(key)
    if sequence is not None and sequence.received_from == peer:
        worker.end(key)


def on_peer_lost(worker: Worker, peer: Address) -> None:
    """A worker's hand-offs will not end. A gateway that is only slow learns that its requests do not run any more:
    the failure dials anew; so does that of a request whose end may have been lost with the link."""
    since = worker.clock.now() - FINISHED_LATELY_S
    for at, request in list(worker.finished):
        if request.reply_to == peer:
            worker.finished.remove((at, request))  # said once: a gateway that is dead refuses, and that is a loss again
            if at > since:
                worker.report_failure(request, "link_lost", "the link to the gateway broke")
    worker.give_back("link_lost", "the link to the gateway broke", gateway=peer)
    worker.feed_prompt(h.PeerGone(peer=peer))
    worker.feed_token(h.PeerGone(peer=peer))
