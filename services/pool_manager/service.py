"""Watches reports, announces lost workers, deletes their streams. Any number may run: announcements are idempotent."""

import asyncio

import structlog

from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import Transient
from shared.ids import EntryId, ServiceId
from shared.policy.membership import Membership
from shared.runtime.presence import KEEP_REPORTS, Presence, follow
from shared.runtime.supervise import Supervisor
from shared.wire.streams import REPORTS, worker_stream
from shared.wire.terms import State

log = structlog.get_logger()

EVERY_S = 1.0


class PoolManager:
    def __init__(self, *, manager_id: ServiceId, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._membership = Membership()
        self._presence = Presence(broker, manager_id, "pool_manager")

    async def run(self, supervisor: Supervisor) -> None:
        tasks = [
            supervisor.spawn(follow(self._broker, {REPORTS: EntryId("0-0")}, self._on_entry), name="reports"),
            supervisor.spawn(self._presence.run(), name="presence"),
            supervisor.spawn(self._manage(), name="membership"),
        ]
        await supervisor.stopping.wait()
        for task in tasks:
            task.cancel()
        await self._presence.say(State.LOST)

    def _on_entry(self, entry: Entry) -> None:
        self._membership.apply(entry.message, entry.entry_id, self._clock.now() - entry.waited_s)

    async def _manage(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            now = self._clock.now()
            try:
                for lost in self._membership.newly_lost(now):
                    log.info("worker gone", worker_id=lost.worker_id, reason=lost.reason)
                    await self._broker.publish(REPORTS, lost, keep=KEEP_REPORTS)
                for worker_id in self._membership.streams_to_delete(now):
                    await self._broker.delete(worker_stream(worker_id))
            except Transient as error:
                log.debug("broker out of reach", reason=str(error))
