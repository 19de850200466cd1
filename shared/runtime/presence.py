"""What every service does with the broker besides its work: follow streams for ever, and say that it is alive."""

import asyncio
import os
from collections.abc import Callable, Sequence

import structlog

from shared.broker.port import Broker, Entry
from shared.errors import Transient
from shared.ids import EntryId, ServiceId, StreamName
from shared.wire.reports import ServiceReport
from shared.wire.streams import REPORTS
from shared.wire.terms import State

log = structlog.get_logger()

HEARTBEAT_S = 1.0
WAIT_S = 1.0
RETRY_S = 0.2


async def follow(
    broker: Broker,
    on_entry: Callable[[Entry], None],
    *,
    kept: Sequence[StreamName] = (),
    new: Sequence[StreamName] = (),
    own: StreamName | None = None,
    on_outage: Callable[[bool], None] = lambda answers: None,
) -> None:
    """Hand every entry to `on_entry`, in order per stream, for ever: all that is kept in some streams, only what comes
    from now on in others, and those of `own`, which are deleted once they were handled.

    Outages are sat out; `on_outage` hears whether the broker answers, whenever that may have changed.
    """
    position = {stream: EntryId("0-0") for stream in (*kept, *((own,) if own else ()))}
    handled: list[EntryId] = []
    while True:
        try:
            for stream in [s for s in new if s not in position]:
                position[stream] = await broker.last_id(stream)
            entries = await broker.tail(position, wait_s=WAIT_S)
        except Transient as error:
            log.debug("broker out of reach", reason=str(error))
            on_outage(False)
            await asyncio.sleep(RETRY_S)
            continue
        on_outage(True)
        for entry in entries:
            position[entry.stream] = entry.entry_id
            on_entry(entry)
        if own:
            handled += [entry.entry_id for entry in entries if entry.stream == own]
            handled = await _discard(broker, own, handled)


async def _discard(broker: Broker, stream: StreamName, handled: list[EntryId]) -> list[EntryId]:
    """What is still to be deleted: the position has passed it already, so that can wait for the broker."""
    if not handled:
        return []
    try:
        await broker.discard(stream, handled)
    except Transient:
        return handled
    return []


class Presence:
    """The heartbeat of a service that is no worker."""

    def __init__(self, broker: Broker, service_id: ServiceId, service: str) -> None:
        self._broker = broker
        self._service_id = service_id
        self._service = service
        self.state = State.READY

    def report(self) -> ServiceReport:
        return ServiceReport(service_id=self._service_id, service=self._service, pid=os.getpid(), state=self.state)

    async def run(self) -> None:
        while True:
            await self.say(self.state)
            await asyncio.sleep(HEARTBEAT_S)

    async def say(self, state: State) -> None:
        self.state = state
        try:
            await self._broker.publish(REPORTS, self.report())
        except Transient as error:
            log.debug("report not sent", reason=str(error))
