"""The gateway put together: HTTP in front, broker and links behind, one decider between.

Use as `await gateway(...)`; it runs until `supervisor.stopping`, then finishes what runs within DRAIN_S and returns.
"""

import asyncio
import os
import secrets
from collections.abc import Callable

import structlog
from aiohttp import web

from services.gateway import events as ev
from services.gateway.app import Surface
from services.gateway.generate import Generator
from services.gateway.mesh import Mesh
from services.gateway.metrics import Metrics
from services.gateway.sessions import Sessions
from services.gateway.switchboard import Switchboard
from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import ConfigError, Transient
from shared.ids import EntryId, ServiceId, StreamName
from shared.link.port import Links
from shared.models.tokenizer import Tokenizer
from shared.runtime.config import Settings
from shared.runtime.supervise import Supervisor
from shared.wire.messages import Placed, ServiceReport, Unplaceable, WorkerReport
from shared.wire.streams import PLACEMENTS, REPORTS
from shared.wire.terms import State

DRAIN_S = 15.0
REPORT_S = 1.0
KEPT_REPORTS = 1000
TAIL_S = 1.0
OUTAGE_PAUSE_S = 0.2
log = structlog.get_logger()


async def gateway(
    settings: Settings,
    supervisor: Supervisor,
    *,
    gateway_id: ServiceId,
    model: str,
    broker: Broker,
    links: Links,
    tokenizer: Tokenizer,
    clock: Clock,
    listening: Callable[[int], None] = lambda port: None,
) -> None:
    """`listening` is told the port once requests are accepted. `links` and `broker` stay the caller's to close."""
    mesh = Mesh(model)
    metrics = Metrics(mesh)
    sessions = Sessions(ev.Identity(gateway_id=gateway_id, address=links.address))
    switchboard = Switchboard(
        sessions=sessions, broker=broker, links=links, clock=clock, spawn=supervisor.spawn, metrics=metrics
    )
    loops = _Loops(gateway_id, mesh, metrics, switchboard, broker, clock)
    generator = Generator(
        switchboard=switchboard, mesh=mesh, tokenizer=tokenizer, clock=clock,
        draw_seed=lambda: secrets.randbits(63), time_limit_s=settings.request_timeout_s,
    )  # fmt: skip
    surface = Surface(
        generator=generator, mesh=mesh, metrics=metrics, timelines=sessions.timelines, clock=clock,
        own=loops.own_report, api_keys=settings.api_key,
    )  # fmt: skip
    runner = web.AppRunner(surface.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = await _listen(runner, settings)
        tasks = [
            supervisor.spawn(switchboard.listen(), name="links"),
            supervisor.spawn(loops.follow(), name="view"),
            supervisor.spawn(loops.report(), name="report"),
        ]
        listening(runner.addresses[0][1])
        log.info("gateway listening", host=settings.host, port=runner.addresses[0][1], model=model)
        await supervisor.stopping.wait()
        await _drain(mesh, switchboard, loops, site)
        for task in tasks:
            task.cancel()
    finally:
        switchboard.close()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings) -> web.TCPSite:
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}", param="port") from error
    return site


async def _drain(mesh: Mesh, switchboard: Switchboard, loops: "_Loops", site: web.TCPSite) -> None:
    """Accept nothing new, let what runs end, and end the rest with an error that the client can read."""
    mesh.draining = True
    log.info("gateway draining", requests=len(switchboard.sessions))
    await loops.say(State.DRAINING)
    await site.stop()
    try:
        async with asyncio.timeout(DRAIN_S):
            await switchboard.until_idle()
    except TimeoutError:
        switchboard.feed(ev.Stopping())
    await loops.say(State.LOST)


class _Loops:
    """What the gateway does with the broker besides submitting: follow the streams, say that it is alive."""

    def __init__(
        self,
        gateway_id: ServiceId,
        mesh: Mesh,
        metrics: Metrics,
        switchboard: Switchboard,
        broker: Broker,
        clock: Clock,
    ) -> None:
        self._gateway_id = gateway_id
        self._mesh = mesh
        self._metrics = metrics
        self._switchboard = switchboard
        self._broker = broker
        self._clock = clock

    async def follow(self) -> None:
        """Every placement from now on, and the reports that are kept, for ever; outages are sat out."""
        position: dict[StreamName, EntryId] = {}
        while True:
            try:
                if not position:
                    position = {PLACEMENTS: await self._broker.last_id(PLACEMENTS), REPORTS: EntryId("0-0")}
                entries = await self._broker.tail(position, wait_s=TAIL_S)
            except Transient as error:
                self._broker_answers(False, str(error))
                await asyncio.sleep(OUTAGE_PAUSE_S)
                continue
            self._broker_answers(True)
            for entry in entries:
                position[entry.stream] = entry.entry_id
                self._on_entry(entry)

    async def report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.say(self.own_report().state)
            due = loop.time() + REPORT_S
            await asyncio.sleep(REPORT_S)
            self._metrics.loop_lag.set(max(0.0, loop.time() - due))

    async def say(self, state: State) -> None:
        try:
            await self._broker.publish(REPORTS, self.own_report(state), keep=KEPT_REPORTS)
        except Transient as error:
            log.debug("report not sent", reason=str(error))

    def own_report(self, state: State | None = None) -> ServiceReport:
        state = state or (State.DRAINING if self._mesh.draining else State.READY)
        return ServiceReport(service_id=self._gateway_id, service="gateway", pid=os.getpid(), state=state)

    def _broker_answers(self, answers: bool, reason: str = "") -> None:
        if answers == self._mesh.broker_answers:
            return
        self._mesh.broker_answers = answers
        if answers:
            self._switchboard.feed(ev.BrokerBack())
        else:
            log.warning("broker out of reach", reason=reason)
            self._switchboard.feed(ev.BrokerSilent())

    def _on_entry(self, entry: Entry) -> None:
        message = entry.message
        if isinstance(message, WorkerReport):
            self._note_role(message)
        self._mesh.view.apply(message, entry.entry_id, self._clock.now() - entry.waited_s)
        if isinstance(message, Placed | Unplaceable | WorkerReport):
            self._switchboard.feed(message)

    def _note_role(self, report: WorkerReport) -> None:
        known = self._mesh.view.workers.get(report.worker_id)
        if known and known.report.role is not report.role:
            self._metrics.role_changes.labels(known.report.role.value, report.role.value).inc()
