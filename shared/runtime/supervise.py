"""The owner of every task in a process, and the way a process starts and ends.

    python -m services.x → run(service) → Supervisor → service(supervisor) until `stopping`, then drain, then exit 0

A task that dies takes the process down with its traceback: a mesh of silent half-dead processes is worse than a
restart. SIGTERM and SIGINT set `stopping`; a second one ends at once.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from shared.errors import MeshError


class Supervisor:
    """Use as `async with Supervisor() as supervisor`. Leaving the block cancels what still runs."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()
        self.serving = False  # set by a service that has something to offer; see shared.runtime.probe

    async def __aenter__(self) -> "Supervisor":
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(*exc)

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> "asyncio.Task[None]":
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fail_on_callbacks(self) -> None:
        """A bug in a callback of the event loop (a transfer's end, a protocol, a timer) is a crash like any other."""
        asyncio.get_running_loop().set_exception_handler(self._on_callback_error)

    def _on_callback_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.spawn(_raise(error), name="callback error")

    def stop_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            os._exit(130)
        self.stopping.set()


def run(service: Callable[[Supervisor], Awaitable[None]]) -> int:
    """Run a service to its end and return the exit code. A MeshError becomes one line, a bug its traceback."""

    async def main() -> None:
        async with Supervisor() as supervisor:
            supervisor.stop_on_signals()
            supervisor.fail_on_callbacks()
            await service(supervisor)

    exit_code = 0
    try:
        uvloop.run(main())
    except* MeshError as group:
        for error in _leaves(group):
            print(f"splitmesh: {error}", file=sys.stderr)
        exit_code = 2
    return exit_code


async def _raise(error: Exception) -> None:
    raise error


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
