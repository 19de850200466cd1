"""The gateway put together: HTTP in front, broker and links behind, one decider between.

Use as `await gateway(...)`; it runs until `supervisor.stopping`, then finishes what runs within DRAIN_S and returns.
"""

import asyncio
import secrets
from collections.abc import Callable

import structlog
from aiohttp import web

from services.gateway import events as ev
from services.gateway.app import Surface
from services.gateway.generate import Generator
from services.gateway.mesh import Mesh
from services.gateway.metrics import Metrics
from services.gateway.operate import Operations
from services.gateway.sessions import Sessions
from services.gateway.switchboard import Switchboard
from shared.broker.port import Broker, Entry
from shared.clock import Clock
from shared.errors import ConfigError
from shared.ids import ServiceId
from shared.link.port import Links
from shared.models.tokenizer import Tokenizer
from shared.policy.admission import Admission, Promises
from shared.policy.routing import Limits
from shared.runtime.config import Settings
from shared.runtime.presence import Presence, follow
from shared.runtime.supervise import Supervisor
from shared.wire.messages import Placed, Unplaceable
from shared.wire.reports import RoleChanged, WorkerReport
from shared.wire.streams import EVENTS, PLACEMENTS, REPORTS
from shared.wire.terms import State

DRAIN_S = 15.0
LAG_EVERY_S = 1.0
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
    identity = ev.Identity(gateway_id=gateway_id, address=links.address)
    sessions = Sessions(identity)
    switchboard = Switchboard(
        sessions=sessions, broker=broker, links=links, clock=clock, spawn=supervisor.spawn, metrics=metrics
    )
    limits = Limits(borrow=settings.pools == "moving", ttft_target_s=settings.ttft_target_s)  # as the routers have them
    admission = Admission(mesh.view, _promises(settings), limits)
    outlook = _Outlook(mesh, metrics, switchboard, admission, clock)
    presence = Presence(broker, gateway_id, "gateway")
    watching = follow(broker, outlook.on_entry, kept=[REPORTS, EVENTS], new=[PLACEMENTS], on_outage=outlook.on_outage)
    generator = Generator(
        identity=identity, switchboard=switchboard, admission=admission, mesh=mesh, tokenizer=tokenizer, clock=clock,
        draw_seed=lambda: secrets.randbits(63), time_limit_s=settings.request_timeout_s,
    )  # fmt: skip
    surface = Surface(
        generator=generator, mesh=mesh, metrics=metrics, timelines=sessions.timelines, clock=clock,
        operations=Operations(mesh, broker, clock), own=presence.report, api_keys=settings.api_key,
    )  # fmt: skip
    runner = web.AppRunner(surface.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = await _listen(runner, settings)
        tasks = [
            supervisor.spawn(switchboard.listen(), name="links"),
            supervisor.spawn(watching, name="view"),
            supervisor.spawn(presence.run(), name="presence"),
            supervisor.spawn(_measure_lag(metrics), name="lag"),
        ]
        listening(runner.addresses[0][1])
        log.info("gateway listening", host=settings.host, port=runner.addresses[0][1], model=model)
        await supervisor.stopping.wait()
        await _drain(mesh, switchboard, presence, site)
        for task in tasks:
            task.cancel()
    finally:
        switchboard.close()
        await runner.cleanup()


def _promises(settings: Settings) -> Promises:
    if settings.admission == "off":
        return Promises(max_queued_tokens=settings.max_queued_tokens)
    return Promises(
        ttft_target_s=settings.ttft_target_s,
        tbt_target_s=settings.tbt_target_s,
        max_queued_tokens=settings.max_queued_tokens,
    )


async def _listen(runner: web.AppRunner, settings: Settings) -> web.TCPSite:
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}", param="port") from error
    return site


async def _drain(mesh: Mesh, switchboard: Switchboard, presence: Presence, site: web.TCPSite) -> None:
    """Accept nothing new, let what runs end, and end the rest with an error that the client can read."""
    mesh.draining = True
    log.info("gateway draining", requests=len(switchboard.sessions))
    await presence.say(State.DRAINING)
    await site.stop()
    try:
        async with asyncio.timeout(DRAIN_S):
            await switchboard.until_idle()
    except TimeoutError:
        switchboard.feed(ev.Stopping())
    await presence.say(State.LOST)


class _Outlook:
    """What the gateway learns from the broker: the mesh around it, and whether the broker answers at all."""

    def __init__(
        self, mesh: Mesh, metrics: Metrics, switchboard: Switchboard, admission: Admission, clock: Clock
    ) -> None:
        self._mesh = mesh
        self._metrics = metrics
        self._switchboard = switchboard
        self._admission = admission
        self._clock = clock
        self._since = clock.now()

    def on_entry(self, entry: Entry) -> None:
        message, heard_at = entry.message, self._clock.now() - entry.waited_s
        if isinstance(message, RoleChanged):
            self._note_role(message, heard_at)
        if isinstance(message, WorkerReport):
            self._switchboard.feed(ev.WorkerHeard(worker_id=message.worker_id, state=message.state, at=heard_at))
        self._mesh.view.apply(message, entry.entry_id, heard_at)
        if isinstance(message, Placed | Unplaceable):
            self._admission.settle(message.request_id)
            self._switchboard.feed(message)

    def on_outage(self, answers: bool) -> None:
        if answers == self._mesh.broker_answers:
            return
        self._mesh.broker_answers = answers
        self._switchboard.feed(ev.BrokerBack() if answers else ev.BrokerSilent())

    def _note_role(self, changed: RoleChanged, heard_at: float) -> None:
        self._mesh.note_role(changed, heard_at)
        if heard_at >= self._since:  # counters start with the process; what is kept of the past is only shown
            self._metrics.role_changes.labels(changed.was.value, changed.role.value).inc()


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.loop_lag.set(max(0.0, loop.time() - due))
