"""The client's one loop: send every request when it is due, whatever became of the others.

    prepare: all prompts and bodies, before the clock starts
    run: wait for the next due time → start its request → …; a user's next request begins when the one before has ended

The schedule is absolute: a late request does not move the later ones, and its lateness is in its record.
"""

import asyncio
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from loadgen.client.ask import Asked, ask
from loadgen.client.prompts import Prompts, Symbols
from loadgen.client.server import Server
from loadgen.record import Outcome, Record
from loadgen.traces.trace import Request
from shared.clock import Clock
from shared.tasks import Spawn

Numbered = tuple[int, Request]  # number in the trace
LOOK_EVERY_S = 0.1
RECENT = 200  # gaps whose median is shown


@dataclass(slots=True)
class Tally:
    """What the live view shows; `ttft_s` and the last of `gap_s` are of what ended since it was last taken."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)

    def count(self, record: Record) -> None:
        self.done += record.outcome is Outcome.COMPLETED
        self.failed += record.sent_s is not None and record.outcome is not Outcome.COMPLETED
        if record.event_s:
            self.ttft_s.append(record.event_s[0] - record.due_s)
            self.gap_s += map(operator.sub, record.event_s[1:], record.event_s)

    def taken(self) -> "Tally":
        now = Tally(self.sent, self.done, self.failed, self.ttft_s, self.gap_s[-RECENT:])
        self.ttft_s, self.gap_s = [], []
        return now


class Sender:
    """One client process's share of a trace; requests that follow one another are in the same share."""

    def __init__(
        self, server: Server, requests: Sequence[Numbered], *, seed: int, deadline_s: float, drain_s: float,
        clock: Clock, spawn: Spawn,
    ) -> None:  # fmt: skip
        self._server, self._clock, self._spawn = server, clock, spawn
        self._deadline_s, self._drain_s = deadline_s, drain_s
        self._prompts = Prompts(server, seed)
        self._requests = dict(requests)
        self._followers: dict[int, list[int]] = {}
        for number, request in requests:
            if request.after is not None:
                self._followers.setdefault(request.after, []).append(number)
        self._carried: dict[int, Symbols] = {}  # prompts that others will carry on
        self._bodies: dict[int, bytes] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._start_s = 0.0
        self._stopped = False
        self.records = {number: _unsent(number, request) for number, request in requests}
        self.tally = Tally()

    def prepare(self, on_progress: Callable[[int], None]) -> None:
        """Everything that can be made beforehand: only what carries on an answer cannot. `on_progress` gets counts."""
        for done, (number, request) in enumerate(self._requests.items(), start=1):
            if not request.carries:
                self._prepare(number, None)
            on_progress(done)

    async def run(self, session: aiohttp.ClientSession, start_s: float) -> None:
        """`start_s` is on the clock. Returns when all have ended, or the drain's time after the last was sent."""
        self._start_s = start_s
        for number, request in self._requests.items():
            if request.after is None:
                await self._until(request.at_s)
                if self._stopped:
                    break
                self._begin(session, number, request.at_s)
        await self._drained()

    def stop(self, *, drain: bool) -> None:
        """Send nothing more; without `drain` what is running is given up, too."""
        self._stopped = True
        self._drain_s = self._drain_s if drain else 0.0

    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._clock.now() - self._start_s

    async def _until(self, due_s: float) -> None:
        """Never early, and late by the timer's millisecond unless the loop is busy. A stop ends the wait."""
        while (left_s := due_s - self.now()) > 0 and not self._stopped:
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))

    def _begin(self, session: aiohttp.ClientSession, number: int, due_s: float) -> None:
        self._running[number] = self._spawn(self._one(session, number, due_s), name=f"request {number}")

    async def _one(self, session: aiohttp.ClientSession, number: int, due_s: float) -> None:
        """One request from when it is due to its end; then those that waited for it are begun."""
        await self._until(due_s)
        record = self.records[number]
        record.due_s = due_s
        asked = Asked(record=record)
        try:
            if not self._stopped:
                self.tally.sent += 1
                body = self._bodies.pop(number)
                await ask(session, self._server, body, asked, now=self.now, deadline_s=self._deadline_s)
        finally:
            self._running.pop(number)
            self.tally.count(record)
        for follower in self._followers.get(number, ()):
            self._follow(session, follower, number, asked)

    def _follow(self, session: aiohttp.ClientSession, number: int, before: int, asked: Asked) -> None:
        request = self._requests[number]
        if request.carries:
            answer = self._prompts.answer(before, self._requests[before], asked.token_ids)
            self._prepare(number, np.concatenate([self._carried[before], answer]))
        ended_s = self.now() if asked.record.done_s is None else asked.record.done_s
        self._begin(session, number, max(request.at_s, ended_s + request.think_s))

    def _prepare(self, number: int, before: Symbols | None) -> None:
        request = self._requests[number]
        symbols = self._prompts.symbols(number, request, before)
        if any(self._requests[follower].carries for follower in self._followers.get(number, ())):
            self._carried[number] = symbols
        self._bodies[number] = self._prompts.body(symbols, request.output_tokens)

    async def _drained(self) -> None:
        sent, since_s = self.tally.sent, self.now()
        while self._running:
            await asyncio.sleep(LOOK_EVERY_S)
            if self.tally.sent > sent:
                sent, since_s = self.tally.sent, self.now()
            waits = not self._stopped and sent < len(self._requests)  # a user is thinking, or its answer is coming
            if not waits and self.now() - since_s > self._drain_s:
                break
        for task in list(self._running.values()):
            task.cancel()
        for record in self.records.values():
            if record.sent_s is not None and record.done_s is None and record.error is None:
                record.error = f"no end within the drain of {self._drain_s:g} s" if self._drain_s else "given up"


def _unsent(number: int, request: Request) -> Record:
    return Record(
        index=number, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens, due_s=request.at_s,
        error="never sent",
    )  # fmt: skip
