"""Everything that reaches a worker from outside: its stream, the placements, the reports of others, and its links."""

import asyncio

import structlog

from shared.errors import Transient
from shared.ids import EntryId, StreamName
from shared.link.port import Lost, Received
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
    WorkerLost,
)
from shared.wire.streams import PLACEMENTS, REPORTS, worker_stream
from shared.worker.worker import Worker

log = structlog.get_logger()

WAIT_S = 1.0
TICK_S = 0.25


async def read_streams(worker: Worker) -> None:
    """Prompts from the worker's own stream (deleted once taken), and what is coming, from `placements`."""
    mine = worker_stream(worker.options.worker_id)
    after: dict[StreamName, EntryId] = {mine: EntryId("0-0")}
    connected = True
    while True:
        try:
            if PLACEMENTS not in after:
                after[PLACEMENTS] = worker.coming.covers = await worker.broker.last_id(PLACEMENTS)
                after[REPORTS] = await worker.broker.last_id(REPORTS)
            entries = await worker.broker.tail(after, wait_s=WAIT_S)
            taken = [entry.entry_id for entry in entries if entry.stream == mine]
            if taken:
                await worker.broker.discard(mine, taken)
            connected = True
        except Transient as error:
            if connected:
                log.warning("broker out of reach", reason=str(error))
            connected = False
            await asyncio.sleep(0.2)
            continue
        for entry in entries:
            after[entry.stream] = entry.entry_id
            match entry.message:
                case Assigned():
                    worker.on_assigned(entry.message, entry.waited_s)
                case Placed():
                    worker.coming.see(entry.message, entry.entry_id, worker.clock.now())
                case WorkerLost():
                    worker.coming.lose(entry.message.worker_id)
                case _:
                    pass


async def read_links(worker: Worker) -> None:
    while True:
        event = await worker.links.receive()
        match event:
            case Received():
                _on_frame(worker, event)
            case Lost():
                worker.on_peer_lost(event.peer)


def _on_frame(worker: Worker, received: Received) -> None:
    message: LinkMessage = received.message
    match message:
        case Cancel():
            worker.on_cancel(message)
        case Reserve():
            worker.on_reserve(received.peer, message)
        case Granted() | Refused() | KvAccepted() | KvDamaged():
            worker.feed_prompt(message)
        case KvComplete() | Release():
            worker.feed_token(message)
        case _:
            log.warning("unexpected frame", kind=type(message).__name__, peer=received.peer)


async def tick(worker: Worker) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        worker.tick()
        if worker.idle:
            worker.check()
