"""Child processes that are started again when they die, with growing pauses, until they are stopped.

A child has a process group of its own (a Ctrl-C at the terminal reaches the parent alone), gets its settings from
its environment only, and is killed by the kernel should the parent die. Its output comes back line by line.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.clock import Clock
from shared.tasks import Spawn

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
STABLE_S = 30.0  # after living this long, a child's next pause is the first again
KEPT_LINES = 30
LAST_WORDS_S = 0.5
LONGEST_LINE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run. `kind` is the service, or "redis"; `environment` is the whole of it. One that `may_leave` is not
    started again when it exits with code 0: it did so on purpose."""

    name: str
    kind: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    may_leave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A child ended by itself; it is started again after `pause_s`, or left for good if that is None. `exit_code` is
    negative for a signal."""

    name: str
    exit_code: int
    lived_s: float
    pause_s: float | None
    last_lines: tuple[str, ...]

    @property
    def how(self) -> str:
        if self.exit_code >= 0:
            return f"exited with code {self.exit_code}"
        return f"was ended by {signal.Signals(-self.exit_code).name}"


class Child:
    """`on_line(name, line)` gets its output, `on_ended` every end that nobody here asked for."""

    def __init__(
        self,
        command: Command,
        *,
        spawn: Spawn,
        clock: Clock,
        on_line: Callable[[str, str], None],
        on_ended: Callable[[Ended], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.command = command
        self._spawn, self._clock = spawn, clock
        self._on_line, self._on_ended = on_line, on_ended
        self._first_pause_s = first_pause_s
        self._process: subprocess.Popen[bytes] | None = None  # while it runs
        self._started = False
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        self._started = True
        self._spawn(self._keep_running(), name=f"child {self.command.name}")

    async def stop(self, limit_s: float) -> bool:
        """TERM, and KILL after `limit_s`. Whether it went by itself. Safe to call twice, and on one never started."""
        if not self._started:
            return True
        self._stopping.set()
        if self._process:
            self._process.send_signal(signal.SIGTERM)
        in_time = await _set_within(self._finished, limit_s)
        self.kill()
        await self._finished.wait()
        return in_time

    def kill(self) -> None:
        """End it and whatever it started, at once and for good."""
        self._stopping.set()
        if self._process:
            _kill_group(self._process.pid)

    async def _keep_running(self) -> None:
        pause_s = self._first_pause_s
        try:
            while not self._stopping.is_set():
                started_at = self._clock.now()
                exit_code = await self._run_once()
                if self._stopping.is_set():
                    break
                lived_s = self._clock.now() - started_at
                pause_s = self._first_pause_s if lived_s > STABLE_S else pause_s
                left = self.command.may_leave and exit_code == 0
                self._on_ended(
                    Ended(
                        name=self.command.name, exit_code=exit_code, lived_s=lived_s,
                        pause_s=None if left else pause_s, last_lines=tuple(self._lines),
                    )
                )  # fmt: skip
                if left:
                    break
                await _set_within(self._stopping, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self.kill()
            self._finished.set()

    async def _run_once(self) -> int:
        self._lines.clear()
        process = launch(self.command)
        self._process = process
        relay = self._spawn(self._relay_output(process), name=f"output of {self.command.name}")
        await exit_of(process)
        await asyncio.wait({relay}, timeout=LAST_WORDS_S)
        _kill_group(process.pid)  # what it left behind; its own id is ours until we reap it
        self._process = None
        return process.wait()

    async def _relay_output(self, process: "subprocess.Popen[bytes]") -> None:
        async for line in output_lines(process):
            self._lines.append(line)
            self._on_line(self.command.name, line)


def launch(command: Command) -> "subprocess.Popen[bytes]":
    """Start a process that is tied to this one's life; stdout and stderr come back as one."""
    tie = [sys.executable, "-IS", str(Path(__file__).with_name("tied.py")), str(os.getpid())]
    return subprocess.Popen(
        [*tie, *command.argv], env=dict(command.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip


async def exit_of(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of a process without a thread."""
    exited = asyncio.Event()
    handle = os.pidfd_open(process.pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def output_lines(process: "subprocess.Popen[bytes]") -> AsyncIterator[str]:
    """Until the process and whatever it started have closed their output. Overlong lines lose their beginning."""
    assert process.stdout is not None
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
    rest = b""
    try:
        while data := await reader.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-LONGEST_LINE_BYTES:]
            for line in lines:
                yield line.decode(errors="replace").rstrip()
        if rest:
            yield rest.decode(errors="replace").rstrip()
    finally:
        pipe.close()


def _kill_group(leader: int) -> None:
    """Whoever is left of it: a group whose last process has ended may be gone before its leader is reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            return await event.wait()
    except TimeoutError:
        return False
