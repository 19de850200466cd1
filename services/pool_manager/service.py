"""Watches reports and deletes the streams of workers that are gone. Any number may run: deleting is idempotent."""

import asyncio

import structlog

from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import Transient
from shared.ids import ServiceId
from shared.policy.membership import Membership
from shared.runtime.presence import Presence, follow
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
            supervisor.spawn(follow(self._broker, self._on_entry, kept=[REPORTS]), name="reports"),
            supervisor.spawn(self._presence.run(), name="presence"),
            supervisor.spawn(self._sweep(), name="membership"),
        ]
        await supervisor.stopping.wait()
        for task in tasks:
            task.cancel()
        await self._presence.say(State.LOST)

    def _on_entry(self, entry: Entry) -> None:
        self._membership.apply(entry.message, entry.entry_id, self._clock.now() - entry.waited_s)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            for worker_id in self._membership.gone(self._clock.now()):
                try:
                    await self._broker.delete(worker_stream(worker_id))
                except Transient:
                    break
                self._membership.swept(worker_id)
                log.info("worker gone, its stream is deleted", worker_id=worker_id)
