"""What the contracts of links and transports share: tasks that are never lost, and peers in a process of their own."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shared.tasks import Spawn

SECRET = b"a secret of this mesh"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Tasks of the code under test; one that died of an error fails the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(coroutine: Coroutine[Any, Any, None], *, name: str) -> "asyncio.Task[None]":
        tasks.append(asyncio.create_task(coroutine, name=name))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in results if isinstance(one, Exception)] == []


class Child:
    """tests/contract/child.py in a process of its own, on uvloop. It says a line, it is told lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


StartChild = Callable[..., Awaitable[Child]]


@pytest.fixture
async def start_child() -> AsyncIterator[StartChild]:
    children: list[Child] = []

    async def start(*arguments: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("child.py")),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        children.append(Child(process))
        return children[-1]

    yield start
    for child in children:
        await child.end()
