"""Children: started again when they die, stopped in time, gone with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from services.local.children import Child, Command, Ended
from services.local.fleet import Fleet
from shared.clock import SystemClock
from shared.runtime.supervise import Supervisor

ROOT = Path(__file__).parents[2]


def command(script: str, *, name: str = "child", kind: str = "router", may_leave: bool = False) -> Command:
    argv = (sys.executable, "-S", "-c", script)
    return Command(name=name, kind=kind, argv=argv, environment={"GREETING": "hello"}, may_leave=may_leave)


SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


class Watched:
    """What a child told, and children made with short pauses."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.lines: list[tuple[str, str]] = []
        self.ended: list[Ended] = []

    def child(self, script: str) -> Child:
        return Child(
            command(script), spawn=self._supervisor.spawn, clock=SystemClock(), first_pause_s=0.05,
            on_line=lambda name, line: self.lines.append((name, line)), on_ended=self.ended.append,
        )  # fmt: skip


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with Supervisor() as supervisor:
        yield Watched(supervisor)


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_output_and_environment_pass_and_nothing_else_does(watched: Watched) -> None:
    child = watched.child("import os; print(os.environ['GREETING'], 'PATH' in os.environ); print('no newline', end='')")
    child.start()
    await until(lambda: watched.ended)
    assert watched.lines[:2] == [("child", "hello False"), ("child", "no newline")]
    assert (watched.ended[0].exit_code, watched.ended[0].last_lines) == (0, ("hello False", "no newline"))
    assert await child.stop(5)


async def test_a_dead_child_is_started_again_with_growing_pauses(watched: Watched) -> None:
    child = watched.child("import sys; sys.exit(3)")
    child.start()
    await until(lambda: len(watched.ended) >= 3)
    assert [ended.pause_s for ended in watched.ended[:3]] == [0.05, 0.1, 0.2]
    assert watched.ended[0].how == "exited with code 3"
    assert await child.stop(5)
    deaths = len(watched.ended)
    await asyncio.sleep(0.3)
    assert len(watched.ended) == deaths


async def test_a_child_whose_group_has_gone_before_it_is_started_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(group: int, number: int) -> None:
        raise ProcessLookupError(group)

    monkeypatch.setattr(os, "killpg", gone)
    child = watched.child("import sys; sys.exit(3)")
    child.start()
    await until(lambda: len(watched.ended) >= 2)
    assert await child.stop(5)


async def test_a_killed_child_gets_another_process(watched: Watched) -> None:
    child = watched.child(SLEEP)
    child.start()
    await until(lambda: watched.lines)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    assert watched.ended[0].how == "was ended by SIGKILL"
    assert await child.stop(5)
    assert child.pid is None


async def test_a_stubborn_child_is_killed_in_time(watched: Watched) -> None:
    child = watched.child(STUBBORN)
    child.start()
    await until(lambda: watched.lines)
    pid = child.pid
    assert await child.stop(0.2) is False
    assert pid is not None and not psutil.pid_exists(pid)


async def test_what_a_child_started_goes_with_it(watched: Watched) -> None:
    child = watched.child(
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    child.start()
    await until(lambda: watched.lines)
    grandchild = int(watched.lines[0][1])
    await child.stop(5)
    await until(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


async def test_stopping_one_that_never_started_is_fine(watched: Watched) -> None:
    assert await watched.child(SLEEP).stop(1)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time; from services.local.children import Command, launch\n"
         "p = launch(Command(name='x', kind='x', argv=(sys.executable, '-S', '-c', 'import time; time.sleep(60)'),"
         " environment={}))\n"
         "print(p.pid, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)  # until the child is tied
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie":
            return
        time.sleep(0.01)
    raise AssertionError("the child outlived its parent")


class WatchedFleet:
    def __init__(self, supervisor: Supervisor) -> None:
        self.states: list[tuple[str, str]] = []
        self.order: list[str] = []
        self.fleet = Fleet(
            spawn=supervisor.spawn, clock=SystemClock(), first_pause_s=0.05,
            on_state=lambda name, state, note: self.states.append((name, state)),
            on_line=lambda name, line: self.order.append(f"{name} {line}"),
        )  # fmt: skip

    def pid(self, name: str) -> int:
        return self.fleet.pid(name) or 0


@pytest.fixture
async def watched_fleet() -> AsyncIterator[WatchedFleet]:
    async with Supervisor() as supervisor:
        yield WatchedFleet(supervisor)


async def test_a_fleet_is_ready_when_every_child_said_so_and_no_longer_when_one_dies(
    watched_fleet: WatchedFleet,
) -> None:
    fleet = watched_fleet.fleet
    for name in ("a", "b"):
        fleet.start(command(SLEEP, name=name))
    await until(lambda: len(watched_fleet.order) == 2)
    fleet.ready(watched_fleet.pid("a"))
    fleet.ready(12345678)
    assert not fleet.all_ready.is_set()
    fleet.ready(watched_fleet.pid("b"))
    assert fleet.all_ready.is_set()
    os.kill(watched_fleet.pid("a"), signal.SIGKILL)
    await until(lambda: ("a", "failed") in watched_fleet.states)
    assert not fleet.all_ready.is_set()
    await until(lambda: len(watched_fleet.order) == 3)
    fleet.ready(watched_fleet.pid("a"))
    assert fleet.all_ready.is_set()
    assert not fleet.failed.is_set()
    await fleet.stop()


async def test_who_leaves_on_purpose_is_not_started_again_and_not_waited_for(watched_fleet: WatchedFleet) -> None:
    fleet = watched_fleet.fleet
    leave = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('up', flush=True)\n"
    fleet.start(command(SLEEP, name="a"))
    fleet.start(command(leave + "time.sleep(60)", name="b", may_leave=True))
    await until(lambda: len(watched_fleet.order) == 2)
    fleet.ready(watched_fleet.pid("a"))
    fleet.ready(watched_fleet.pid("b"))
    os.kill(watched_fleet.pid("b"), signal.SIGTERM)
    await until(lambda: ("b", "left") in watched_fleet.states)
    assert fleet.all_ready.is_set(), "who is left is ready"
    await asyncio.sleep(0.2)
    assert len(watched_fleet.order) == 2
    await fleet.stop()


async def test_who_may_leave_is_started_again_after_a_crash(watched_fleet: WatchedFleet) -> None:
    watched_fleet.fleet.start(command("import sys; print('up', flush=True); sys.exit(3)", may_leave=True))
    await until(lambda: len(watched_fleet.order) >= 2)
    assert ("child", "left") not in watched_fleet.states
    await watched_fleet.fleet.stop()


async def test_a_child_that_never_gets_ready_ends_the_fleet_with_its_own_last_line(
    watched_fleet: WatchedFleet,
) -> None:
    fleet = watched_fleet.fleet
    fleet.start(command("import sys; print('splitmesh: no such model'); sys.exit(2)", name="token-0"))
    await until(fleet.failed.is_set)
    assert str(fleet.failure) == "token-0 does not start: no such model"
    assert fleet.last_words == ()
    assert watched_fleet.states.count(("token-0", "failed")) == 1, "it would refuse again"
    await fleet.stop()


async def test_a_crash_at_start_shows_its_traceback(watched_fleet: WatchedFleet) -> None:
    fleet = watched_fleet.fleet
    fleet.start(command("raise RuntimeError('a bug')"))
    await until(fleet.failed.is_set)
    assert str(fleet.failure) == "child does not start: RuntimeError: a bug"
    assert fleet.last_words[0].startswith("Traceback")
    await fleet.stop()


async def test_the_gateway_stops_first_and_redis_last(watched_fleet: WatchedFleet) -> None:
    farewell = (
        "import signal, sys, time\n"
        "def bye(*_): print('bye', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye); print('up', flush=True); time.sleep(60)"
    )
    kinds = ("redis", "pool_manager", "token_worker", "router", "gateway")
    for kind in kinds:
        watched_fleet.fleet.start(command(farewell, name=kind, kind=kind))
    await until(lambda: len(watched_fleet.order) == len(kinds))
    await watched_fleet.fleet.stop()
    assert watched_fleet.order[len(kinds) :] == [f"{kind} bye" for kind in reversed(kinds)]


async def test_a_fleet_can_be_killed_at_once(watched_fleet: WatchedFleet) -> None:
    watched_fleet.fleet.start(command(STUBBORN, name="gateway", kind="gateway"))
    await until(lambda: watched_fleet.order)
    stopping = asyncio.get_running_loop().create_task(watched_fleet.fleet.stop())
    await asyncio.sleep(0.1)
    watched_fleet.fleet.kill()
    async with asyncio.timeout(2):
        await stopping
