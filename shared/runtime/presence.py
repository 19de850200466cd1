"""What every service does with the broker besides its work: follow streams for ever, and say that it is alive."""

import asyncio
import os
from collections.abc import Callable, Mapping

import structlog

from shared.broker.port import Broker, Entry
from shared.errors import Transient
from shared.ids import EntryId, ServiceId, StreamName
from shared.wire.messages import ServiceReport
from shared.wire.streams import REPORTS
from shared.wire.terms import State

log = structlog.get_logger()

KEEP_REPORTS = 2000
HEARTBEAT_S = 1.0
WAIT_S = 1.0
RETRY_S = 0.2


async def follow(broker: Broker, after: Mapping[StreamName, EntryId], on_entry: Callable[[Entry], None]) -> None:
    """Hand every entry after the given ids to `on_entry`, in order, for ever; outages of the broker are sat out."""
    position = dict(after)
    connected = True
    while True:
        try:
            entries = await broker.tail(position, wait_s=WAIT_S)
            connected = True
        except Transient as error:
            if connected:
                log.warning("broker out of reach", reason=str(error))
            connected = False
            await asyncio.sleep(RETRY_S)
            continue
        for entry in entries:
            position[entry.stream] = entry.entry_id
            on_entry(entry)


class Presence:
    """The heartbeat of a service that is no worker."""

    def __init__(self, broker: Broker, service_id: ServiceId, service: str) -> None:
        self._broker = broker
        self._service_id = service_id
        self._service = service

    async def run(self) -> None:
        while True:
            await self.say(State.READY)
            await asyncio.sleep(HEARTBEAT_S)

    async def say(self, state: State) -> None:
        report = ServiceReport(service_id=self._service_id, service=self._service, pid=os.getpid(), state=state)
        try:
            await self._broker.publish(REPORTS, report, keep=KEEP_REPORTS)
        except Transient as error:
            log.debug("report not sent", reason=str(error))
