"""A client process: it sends its share, stamps, and does nothing else while it measures.

    plan → "ready" → start time → progress twice a second → records

It talks with the command through a pipe; the start time is on the monotonic clock that all processes of a machine
share.
"""

import asyncio
import gc
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection

import aiohttp

from loadgen.client.sender import Numbered, Sender
from loadgen.client.server import Server
from loadgen.record import ClientProcess, Record
from shared.clock import SystemClock
from shared.runtime import supervise
from shared.runtime.supervise import Supervisor

TELL_EVERY_S = 0.5
LOOK_EVERY_S = 0.05
SHARE_OVER_S = 2.0
READ_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one client process has to send."""

    server: Server
    requests: Sequence[Numbered]
    seed: int
    deadline_s: float
    drain_s: float


class Stop(Enum):
    """What the command may say in mid-run."""

    SENDING = "sending"  # nothing new; what runs may end
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """So many prompts are made; when all are, the process waits for the start time."""

    prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    records: list[Record]
    process: ClientProcess


def main(share: Share, command: Connection) -> None:
    """Runs in the new process. A first Ctrl-C is the command's affair, a second ends everything at once."""
    raise SystemExit(supervise.run(lambda supervisor: _run(supervisor, share, command)))


async def _run(supervisor: Supervisor, share: Share, command: Connection) -> None:
    clock = SystemClock()
    sender = Sender(
        share.server, share.requests, seed=share.seed, deadline_s=share.deadline_s, drain_s=share.drain_s, clock=clock,
        spawn=supervisor.spawn,
    )  # fmt: skip
    sender.prepare(lambda done: command.send(Prepared(prompts=done)) if done % 500 == 0 else None)
    command.send(Prepared(prompts=len(share.requests)))
    start_s = command.recv()
    usage = Usage()
    telling = supervisor.spawn(_converse(sender, command, usage), name="progress")
    gc.collect()
    gc.freeze()
    gc.disable()
    usage.note(clock.now())
    async with open_session() as session:
        await sender.run(session, start_s)
    usage.note(clock.now())
    process = ClientProcess(requests=len(share.requests), cpu_share=usage.largest_share())
    telling.cancel()
    command.send(sender.tally.taken())
    command.send(Ended(records=list(sender.records.values()), process=process))


def open_session() -> aiohttp.ClientSession:
    """No limit of its own on connections, time or size."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0),
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=None),
        read_bufsize=READ_BUFFER_BYTES,
    )


async def _converse(sender: Sender, command: Connection, usage: "Usage") -> None:
    told_s = sender.now()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if command.poll():
            sender.stop(drain=command.recv() is Stop.SENDING)
        if sender.now() - told_s >= TELL_EVERY_S:
            told_s = sender.now()
            usage.note(SystemClock().now())
            command.send(sender.tally.taken())


class Usage:
    """Processor time of this process, noted now and then."""

    def __init__(self) -> None:
        self._notes: list[tuple[float, float]] = []

    def note(self, at_s: float) -> None:
        self._notes.append((at_s, cpu_s()))

    def largest_share(self) -> float:
        """Of one core, in any SHARE_OVER_S seconds; over everything if that was shorter. An average would forget a busy
        beginning during a long wait for the last answer."""
        begin = 0
        shares: list[float] = []
        for at_s, used_s in self._notes[1:]:
            while at_s - self._notes[begin + 1][0] >= SHARE_OVER_S:
                begin += 1
            since_s, before_s = self._notes[begin]
            if at_s - since_s >= SHARE_OVER_S or (at_s == self._notes[-1][0] and not shares):
                shares.append((used_s - before_s) / max(1e-3, at_s - since_s))
        return max(shares, default=0.0)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
