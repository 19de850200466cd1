"""Watches the mesh; the one manager that holds the lease moves home roles and deletes the streams of dead workers.

Any number may run. All of them watch, so whoever gets the lease next knows the load already; each order carries the
lease's number, and workers refuse those of a manager that came before.
"""

import asyncio

import structlog

from services.pool_manager.lease import Lease
from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import Transient
from shared.ids import ServiceId
from shared.policy.membership import Membership
from shared.policy.pooling import Pooling
from shared.policy.replay import Call
from shared.policy.view import View
from shared.runtime.journal import Note, not_noted
from shared.runtime.presence import Presence, follow
from shared.runtime.supervise import Supervisor
from shared.wire.reports import SetRole
from shared.wire.streams import EVENTS, PLACEMENTS, REPORTS, worker_stream
from shared.wire.terms import State

log = structlog.get_logger()

EVERY_S = 1.0
LEASE = "pool-manager"


class PoolManager:
    """`moves`: False leaves all home roles as they are."""

    def __init__(
        self, *, manager_id: ServiceId, broker: Broker, clock: Clock, moves: bool = True, note: Note = not_noted
    ) -> None:
        self._moves = moves
        self._note = note
        self._broker = broker
        self._clock = clock
        self._view = View()
        self._membership = Membership(self._view)
        self._pooling = Pooling(self._view)
        self._lease = Lease(LEASE, manager_id, broker, clock)
        self._presence = Presence(broker, manager_id, "pool_manager")

    async def run(self, supervisor: Supervisor) -> None:
        watching = follow(self._broker, self._on_entry, kept=[REPORTS, EVENTS], new=[PLACEMENTS])
        tasks = [
            supervisor.spawn(watching, name="view"),
            supervisor.spawn(self._presence.run(), name="presence"),
            supervisor.spawn(self._manage(), name="pools"),
        ]
        supervisor.serving = True
        await supervisor.stopping.wait()
        for task in tasks:
            task.cancel()
        await self._lease.give_up()
        await self._presence.say(State.LOST)

    def _on_entry(self, entry: Entry) -> None:
        heard_at = self._clock.now() - entry.waited_s
        self._view.apply(entry.message, entry.entry_id, heard_at)
        self._pooling.apply(entry.message, entry.entry_id, heard_at)
        self._note(Call.APPLY, heard_at, entry.message, subject=entry.entry_id)

    async def _manage(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self._lease.renew()
            try:
                await self._move_roles()
                await self._sweep()
            except Transient as error:
                log.debug("broker out of reach", reason=str(error))

    async def _move_roles(self) -> None:
        if not self._moves or self._lease.fence() is None:
            return
        now = self._clock.now()
        moves = self._pooling.decide(now)
        self._note(Call.DECIDE, now, answer=moves)
        for move in moves:
            fence = self._lease.fence()
            if fence is None:
                return
            order = SetRole(worker_id=move.worker_id, role=move.role, fence=fence, reason=move.reason)
            await self._broker.publish(worker_stream(move.worker_id), order)
            log.info("home role ordered", worker_id=move.worker_id, role=move.role.value, reason=move.reason)

    async def _sweep(self) -> None:
        now = self._clock.now()
        gone = self._membership.gone(now)
        self._note(Call.GONE, now, answer=gone)
        for worker_id in gone:
            if self._lease.fence() is None:
                return
            await self._broker.delete(worker_stream(worker_id))
            self._membership.swept(worker_id)
            self._note(Call.SWEPT, now, subject=worker_id)
            log.info("worker gone, its stream is deleted", worker_id=worker_id)
