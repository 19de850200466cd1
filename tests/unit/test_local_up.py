"""`up` with services of three lines: what it starts, shows, restarts, and leaves behind (nothing)."""

import asyncio
import io
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from services.local.children import Command
from services.local.plan import Machine
from services.local.up import up
from shared.errors import ConfigError
from shared.runtime.config import Settings
from shared.runtime.supervise import Supervisor

ROOT = str(Path(__file__).parents[2])

SERVICE = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from shared.broker.redis_streams import RedisBroker
from shared.wire.terms import State
from shared.wire.reports import ServiceReport
from shared.wire.streams import REPORTS
async def main():
    broker = await RedisBroker.connect(sys.argv[2])
    report = ServiceReport(service_id='x', service='x', pid=os.getpid(), state=State.READY)
    await broker.publish(REPORTS, report)
    if len(sys.argv) > 3:
        await asyncio.start_server(answer, '127.0.0.1', int(sys.argv[3]))
    await asyncio.sleep(60)
async def answer(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    writer.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n')
    writer.close()
asyncio.run(main())
"""
REFUSAL = "import sys; print('splitmesh: this model cannot be served'); sys.exit(2)"


def fake_services(settings: Settings, machine: Machine, redis_url: str) -> list[Command]:
    # A fake gets its address on the command line; real services never do.
    make = (
        ("router-0", "router", (ROOT, redis_url)),
        ("gateway-0", "gateway", (ROOT, redis_url, str(settings.port))),
    )
    return [
        Command(name=name, kind=kind, argv=(sys.executable, "-c", SERVICE, *rest), environment={})
        for name, kind, rest in make
    ]


def refusing_services(settings: Settings, machine: Machine, redis_url: str) -> list[Command]:
    return [Command(name="token-0", kind="token_worker", argv=(sys.executable, "-c", REFUSAL), environment={})]


class Running:
    def __init__(self, supervisor: Supervisor, settings: Settings, make: Callable[..., list[Command]]) -> None:
        self._screen = io.StringIO()
        self.supervisor = supervisor
        console = Console(file=self._screen, force_terminal=False, width=200)
        self.task = asyncio.get_running_loop().create_task(up(supervisor, settings, console, make))

    @property
    def shown(self) -> str:
        return self._screen.getvalue()

    async def until_shown(self, text: str, limit_s: float = 20.0) -> None:
        async with asyncio.timeout(limit_s):
            while text not in self.shown:
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self.supervisor.stopping.set()
        async with asyncio.timeout(15):
            await self.task


@pytest.fixture
def leaving_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every child and every temporary file is gone after the test."""
    with tempfile.TemporaryDirectory(prefix="up-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield
        assert list(Path(directory).iterdir()) == []
    assert [child for child in psutil.Process().children(recursive=True) if _runs(child)] == []


def _runs(process: psutil.Process) -> bool:
    try:
        # A Redis of another test's session fixture may run beside, and Python's own helper of processes once spawned.
        others = "redis-server" in process.name() or "resource_tracker" in " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and not others
    except psutil.NoSuchProcess:
        return False


@pytest.mark.usefixtures("leaving_nothing")
async def test_it_starts_serves_restarts_and_stops() -> None:
    async with Supervisor() as supervisor:
        running = Running(supervisor, Settings(port=0, engine="fake"), fake_services)
        await running.until_shown("serving at")
        for step in (
            "redis            ready",
            "model            ready",
            "router-0         ready",
            "api              ready",
        ):
            assert step in running.shown
        assert "curl -N http://127.0.0.1:" in running.shown and "/mesh" in running.shown
        _router().send_signal(signal.SIGKILL)
        await running.until_shown("router-0 was ended by SIGKILL; starting it again in 0.5 s")
        await running.until_shown("router-0 is ready again")
        await running.stop()
        assert "stopped; nothing is left behind" in running.shown


def _router() -> psutil.Process:
    """The gateway has one more argument."""
    (router,) = [child for child in psutil.Process().children() if child.cmdline()[-2:-1] == [ROOT]]
    return router


@pytest.mark.usefixtures("leaving_nothing")
async def test_a_child_that_refuses_to_start_ends_it_with_its_own_line() -> None:
    async with Supervisor() as supervisor:
        running = Running(supervisor, Settings(port=0, engine="fake"), refusing_services)
        with pytest.raises(ConfigError, match="token-0 does not start: this model cannot be served"):
            await running.task


@pytest.mark.usefixtures("leaving_nothing")
async def test_it_can_be_stopped_while_it_starts() -> None:
    async with Supervisor() as supervisor:
        running = Running(supervisor, Settings(port=0, engine="fake"), fake_services)
        await running.until_shown("router-0         starting")
        await running.stop()
        assert "serving at" not in running.shown


@pytest.mark.usefixtures("leaving_nothing")
async def test_a_port_in_use_is_said_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with Supervisor() as supervisor:
            running = Running(supervisor, Settings(port=port, engine="fake"), fake_services)
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
                await running.task
            assert running.shown == ""


@pytest.mark.usefixtures("leaving_nothing")
async def test_a_redis_that_does_not_answer_is_said() -> None:
    async with Supervisor() as supervisor:
        settings = Settings(port=0, engine="fake", redis_url="redis://127.0.0.1:1")
        running = Running(supervisor, settings, fake_services)
        with pytest.raises(ConfigError, match="nothing answers at --redis-url"):
            await running.task


@pytest.mark.usefixtures("leaving_nothing")
async def test_an_unknown_model_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with Supervisor() as supervisor:
        running = Running(supervisor, Settings(port=0, model="no-such-model"), fake_services)
        with pytest.raises(ConfigError, match="unknown model 'no-such-model'"):
            await running.task
