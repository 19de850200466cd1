"""One of several routers in a consumer group: takes a submission, places it, forwards it. It keeps no requests."""

import asyncio
from dataclasses import replace

import structlog

from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import Transient
from shared.ids import ServiceId, StreamName
from shared.policy.replay import Call
from shared.policy.routing import Limits, place
from shared.policy.view import View
from shared.runtime.journal import Note, not_noted
from shared.runtime.presence import Presence, follow
from shared.runtime.supervise import Supervisor
from shared.wire.messages import Assigned, StreamMessage, Submitted, Unplaceable
from shared.wire.streams import PLACEMENTS, REPORTS, ROUTERS, SUBMITTED, worker_stream
from shared.wire.terms import State

log = structlog.get_logger()

WAIT_S = 1.0
RETRY_S = 0.2


class Router:
    def __init__(
        self, *, router_id: ServiceId, broker: Broker, clock: Clock, limits: Limits, note: Note = not_noted
    ) -> None:
        self._id = router_id
        self._note = note
        self._limits = limits
        self._broker = broker
        self._clock = clock
        self._view = View(salt=router_id)
        self._presence = Presence(broker, router_id, "router")

    async def run(self, supervisor: Supervisor) -> None:
        """Route until stopping. An entry taken and not forwarded stays pending; another router takes it over."""
        tasks = [
            supervisor.spawn(follow(self._broker, self._on_entry, kept=[PLACEMENTS, REPORTS]), name="view"),
            supervisor.spawn(self._route_for_ever(supervisor), name="route"),
            supervisor.spawn(self._presence.run(), name="presence"),
        ]
        supervisor.serving = True
        await supervisor.stopping.wait()
        await tasks[1]
        for task in tasks:
            task.cancel()
        await self._presence.say(State.LOST)

    async def _route_for_ever(self, supervisor: Supervisor) -> None:
        while not supervisor.stopping.is_set():
            try:
                entries = await self._broker.consume(SUBMITTED, ROUTERS, self._id, wait_s=WAIT_S)
                for entry in entries:
                    await self._route(entry)
            except Transient as error:
                log.warning("broker out of reach", reason=str(error))
                await asyncio.sleep(RETRY_S)

    async def _route(self, entry: Entry) -> None:
        assert isinstance(entry.message, Submitted), "only submissions travel on this stream"
        waited_s = entry.waited_s
        request = replace(
            entry.message,
            waited_s=entry.message.waited_s + waited_s,
            time_left_s=entry.message.time_left_s - waited_s,
        )
        now = self._clock.now()
        choice = place(self._view, request, now, self._limits)
        self._note(Call.PLACE, now, request, answer=choice)
        if isinstance(choice, str):
            await self._broker.forward(entry, ROUTERS, [(PLACEMENTS, _unplaceable(request, choice))])
            return
        placed = choice.placed(request)
        assigned = Assigned(
            request=request,
            prompt_worker=placed.prompt_worker,
            token_worker=placed.token_worker,
            token_address=placed.token_address,
        )
        outgoing: list[tuple[StreamName, StreamMessage]] = [
            (worker_stream(placed.prompt_worker), assigned),
            (PLACEMENTS, placed),
        ]
        self._view.foresee(placed)
        self._note(Call.FORESEE, now, placed)
        forwarded = False
        try:
            forwarded = await self._broker.forward(entry, ROUTERS, outgoing)
        finally:
            if not forwarded:
                self._view.retract(placed)
                self._note(Call.RETRACT, self._clock.now(), placed)

    def _on_entry(self, entry: Entry) -> None:
        """Keep the load view: every placement and every report, in order."""
        heard_at = self._clock.now() - entry.waited_s
        self._view.apply(entry.message, entry.entry_id, heard_at)
        self._note(Call.APPLY, heard_at, entry.message, subject=entry.entry_id)


def _unplaceable(request: Submitted, reason: str) -> Unplaceable:
    return Unplaceable(
        request_id=request.request_id, attempt=request.attempt, gateway_id=request.gateway_id, reason=reason
    )
