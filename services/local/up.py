"""`splitmesh up`: the whole mesh on this machine, from nothing to a URL, and back to nothing.

    check port and roles → Redis → model → services as children → all ready → wait → drain in order → nothing is left

What cannot work is said in one line. A child that dies is started again; one that cannot even start ends the whole.
"""

import asyncio
import dataclasses
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import aiohttp
from rich.console import Console

from services.local.children import Command
from services.local.embedded_redis import EmbeddedRedis
from services.local.fetch import fetched
from services.local.fleet import Fleet
from services.local.machine import free_port, this_machine
from services.local.plan import Machine, check_memory, check_roles, commands, for_engine, lent_cores
from services.local.view import StartView
from shared.broker.redis_streams import RedisBroker
from shared.clock import SystemClock
from shared.errors import ConfigError, MeshError, Transient
from shared.ids import EntryId
from shared.runtime.config import Settings
from shared.runtime.core_board import BoardFile
from shared.runtime.core_sets import cores_of
from shared.runtime.supervise import Supervisor
from shared.wire.messages import StreamMessage
from shared.wire.reports import ServiceReport, WorkerReport
from shared.wire.streams import REPORTS
from shared.wire.terms import State

DRAW_EVERY_S = 0.1
ASK_EVERY_S = 0.1
SAME_SIGNAL_S = 0.5  # a terminal and `make` may both pass on one Ctrl-C
REDIS, MODEL, API = "redis", "model", "api"
WARNING = re.compile(r'\[(warning|error|critical) *\]|"level": "(warning|error|critical)"')
CHATTER = re.compile(r'\[(debug|info) *\]|"level": "(debug|info)"')

MakeCommands = Callable[[Settings, Machine, str], list[Command]]


def service_commands(settings: Settings, machine: Machine, redis_url: str) -> list[Command]:
    secret = settings.mesh_secret or secrets.token_hex(32)
    return commands(settings, machine, redis_url=redis_url, secret=secret, base=os.environ)


async def up(
    supervisor: Supervisor, settings: Settings, console: Console, make_commands: MakeCommands = service_commands
) -> None:
    """Returns when it was asked to stop and everything is gone. Raises MeshError when the mesh cannot start."""
    check_roles(settings)
    settings = dataclasses.replace(for_engine(settings), port=free_port(settings.host, settings.port))
    lent = lent_cores(settings, this_machine())
    board = BoardFile(lent) if lent else None
    embedded = None if settings.redis_url else EmbeddedRedis()
    try:
        settings = dataclasses.replace(
            settings, redis_url=embedded.url if embedded else settings.redis_url,
            core_board=board.path if board else None,
        )  # fmt: skip
        await LocalMesh(supervisor, settings, console, embedded, make_commands).run()
    finally:
        if embedded:
            embedded.remove()
        if board:
            board.close()


class LocalMesh:
    """One life of the mesh: `run` starts it, waits for a signal or a failure, and stops it."""

    def __init__(
        self,
        supervisor: Supervisor,
        settings: Settings,
        console: Console,
        embedded: EmbeddedRedis | None,
        make_commands: MakeCommands,
    ) -> None:
        self._supervisor, self._settings, self._console, self._embedded = supervisor, settings, console, embedded
        self._machine = this_machine()
        self._redis_url = settings.redis_url or ""
        self._services = make_commands(settings, self._machine, self._redis_url)
        steps = [REDIS, MODEL, *(command.name for command in self._services), API]
        self._clock = SystemClock()
        self._view = StartView(console, steps, self._clock, live=console.is_terminal)
        self._starting = True
        self._ending = asyncio.Event()
        self._asked_at: float | None = None
        self._failure: MeshError | None = None
        self._watching: asyncio.Task[None] | None = None
        self._model_name = settings.served_model_name or settings.model
        self._fleet = Fleet(
            spawn=supervisor.spawn, clock=self._clock, on_state=self._show_state, on_line=self._show_line
        )

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        self._supervisor.spawn(self._end_when_asked(), name="signals")
        self._supervisor.spawn(self._end_on_failure(), name="failures")
        try:
            with self._view:
                start = self._supervisor.spawn(self._start(), name="start")
                while not start.done() and not self._ending.is_set():
                    self._view.draw()
                    await asyncio.wait({start}, timeout=DRAW_EVERY_S)
                start.cancel()
                await asyncio.wait({start})
            self._starting = False
            if not self._ending.is_set():
                self._say_how_to_use()
            await self._ending.wait()
        finally:
            if self._watching:
                self._watching.cancel()
            await self._fleet.stop()
        if self._failure:
            raise self._failure
        self._say("stopped; nothing is left behind")

    # ---- start -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            broker = await self._start_redis()
            after = await broker.last_id(REPORTS)
            self._watching = self._supervisor.spawn(self._watch_reports(broker, after), name="reports")
            await self._prepare_model()
            for command in self._services:
                self._fleet.start(command)
            await self._fleet.all_ready.wait()
            await self._until_served()
        except MeshError as error:
            self._fail(error)

    async def _start_redis(self) -> RedisBroker:
        self._view.set(REDIS, "starting")
        if self._embedded:
            command = Command(name=REDIS, kind=REDIS, argv=tuple(self._embedded.command), environment={})
            self._fleet.start(command)
        try:
            broker = await RedisBroker.connect(self._redis_url, patience_s=10.0 if self._embedded else 0.0)
        except Transient as error:
            raise ConfigError(f"nothing answers at --redis-url: {error}", param="redis_url") from error
        if self._embedded and (pid := self._fleet.pid(REDIS)):
            self._fleet.ready(pid, "embedded")
        self._view.set(REDIS, "ready", "embedded" if self._embedded else "given")
        return broker

    async def _prepare_model(self) -> None:
        weights_bytes = 0
        if self._settings.engine == "hf":
            self._view.set(MODEL, "starting", self._settings.model)
            files = await fetched(
                self._settings.model, self._view.progress, spawn=self._supervisor.spawn, environment=dict(os.environ)
            )
            self._view.end_progress()
            weights_bytes = files.weights_bytes
            self._model_name = self._settings.served_model_name or files.name
            self._view.set(MODEL, "ready", f"{files.name}, {weights_bytes / 2**20:.0f} MiB")
        else:
            self._view.set(MODEL, "ready", f"none: {self._settings.engine} engine")
        check_memory(self._settings, self._machine, weights_bytes)

    async def _watch_reports(self, broker: RedisBroker, after: EntryId) -> None:
        """Tell the fleet who is ready, for as long as somebody is not."""
        try:
            while True:
                with suppress(Transient):
                    for entry in await broker.tail({REPORTS: after}, wait_s=0.5):
                        after = entry.entry_id
                        self._take_report(entry.message)
                while self._fleet.all_ready.is_set():
                    await asyncio.sleep(0.5)
        finally:
            await broker.close()

    def _take_report(self, message: StreamMessage) -> None:
        match message:
            case WorkerReport(state=State.READY) as report:
                self._fleet.ready(report.pid, _worker_note(report))
            case ServiceReport(state=State.READY) as service:
                self._fleet.ready(service.pid)
            case _:
                pass

    async def _until_served(self) -> None:
        self._view.set(API, "starting")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while True:
                reason = await _unready_reason(session, self._url + "/ready")
                if reason is None:
                    break
                self._view.set(API, "starting", reason)
                await asyncio.sleep(ASK_EVERY_S)
        self._view.set(API, "ready", self._url)

    # ---- end -------------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._asked_at is None:
            self._asked_at = self._clock.now()
            self._supervisor.stopping.set()
        elif self._clock.now() - self._asked_at > SAME_SIGNAL_S:
            self._fleet.kill()

    async def _end_when_asked(self) -> None:
        await self._supervisor.stopping.wait()
        self._say("stopping: requests under way may finish; ask again to stop at once")
        self._ending.set()

    async def _end_on_failure(self) -> None:
        await self._fleet.failed.wait()
        for line in self._fleet.last_words:
            print(line, file=sys.stderr)
        if self._fleet.failure:
            self._fail(self._fleet.failure)

    def _fail(self, error: MeshError) -> None:
        self._failure = self._failure or error
        self._ending.set()

    # ---- what people see -------------------------------------------------------------------------------------------

    @property
    def _url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._settings.host, self._settings.host)
        return f"http://{host}:{self._settings.port}"

    def _say_how_to_use(self) -> None:
        key = "-H 'authorization: Bearer YOUR_API_KEY' " if self._settings.api_key else ""
        body = (
            f'{{"model": "{self._model_name}", "stream": true, '
            '"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
        )
        self._say(f"\nserving at  {self._url}/v1   (OpenAI-compatible)")
        self._say(f"the mesh    {self._url}/mesh")
        self._say(
            "try         "
            + f"curl -N {self._url}/v1/chat/completions {key}-H 'content-type: application/json' -d '{body}'"
        )
        self._say("stop        Ctrl-C\n")

    def _show_state(self, name: str, state: str, note: str) -> None:
        if self._starting:
            self._view.set(name, state, note)
        elif not self._failure and (state == "failed" or not self._ending.is_set()):
            self._say(f"{name} {note if state in ('failed', 'left') else f'is {state} again'}")

    def _show_line(self, name: str, line: str) -> None:
        """On a terminal, the picture of the start and the farewell are not buried under what is no trouble."""
        if name == REDIS or self._failure:
            return
        if self._console.is_terminal and self._starting:
            if WARNING.search(line):
                self._say(f"{name} | {line}")
        elif not (self._console.is_terminal and self._ending.is_set() and CHATTER.search(line)):
            print(f"{name} | {line}", file=sys.stderr)

    def _say(self, line: str) -> None:
        self._view.say(line)


def _worker_note(report: WorkerReport) -> str:
    cores = f"{'cores' if len(cores_of(report.cores)) > 1 else 'core'} {report.cores}, " if report.cores else ""
    if not report.transport_bandwidth_gb_s:
        return cores + report.transport
    speed = f"{report.transport_bandwidth_gb_s:.1f} GB/s, {report.transport_latency_ms:.2f} ms"
    return f"{cores}{report.transport} {speed}"


async def _unready_reason(session: aiohttp.ClientSession, url: str) -> str | None:
    """None when the API would serve a request now."""
    try:
        async with session.get(url) as answer:
            return None if answer.status == 200 else (await answer.text())[:100]
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
