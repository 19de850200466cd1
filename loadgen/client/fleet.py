"""A replay, seen from the command: share the trace out, start the client processes together, watch, gather a Run.

The command's process draws progress and asks the server for its queues; the clients do nothing but send and stamp.
"""

import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from loadgen.client.process import Ended, Prepared, Share, Stop, main
from loadgen.client.queues import QueueWatch
from loadgen.client.saturation import Saturation
from loadgen.client.sender import RECENT, Numbered, Tally
from loadgen.client.server import Server
from loadgen.record import INTERRUPTED, Record, Run
from loadgen.traces.trace import Trace
from shared.clock import Clock, SystemClock
from shared.errors import ConfigError, MeshError

EVENTS_PER_PROCESS_S = 10_000  # what one client process surely bears; see tests/bench/client.py
START_IN_S = 0.3
DRAW_EVERY_S = 0.1


class ClientDied(MeshError):
    """A client process ended without its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a trace is sent. What is due before `warmup_s` is not measured. `processes` None: as many as it needs."""

    seed: int = 0
    deadline_s: float = 600.0
    drain_s: float = 600.0
    warmup_s: float = 0.0
    processes: int | None = None
    stop_when_saturated: bool = False


@dataclass(slots=True)
class Progress:
    """What a view can show. Latencies are of the answers that have ended, in the order in which they did; of gaps only
    the last."""

    total: int
    prepared: int = 0
    started: bool = False
    elapsed_s: float = 0.0
    tallies: dict[int, Tally] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    gap_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, process: int, tally: Tally) -> None:
        self.tallies[process] = tally
        self.ttft_s += tally.ttft_s
        self.gap_s.extend(tally.gap_s)

    def count(self, name: str) -> int:
        """Of "sent", "done" or "failed"."""
        return sum(getattr(tally, name) for tally in self.tallies.values())


Show = Callable[[Progress], None]


def replay(server: Server, trace: Trace, settings: Settings, show: Show = lambda progress: None) -> Run:
    """Send the trace to the server and return what came of it. Ctrl-C ends it early; the run then says so. Raises
    ConfigError when the warm-up leaves nothing to measure."""
    if settings.warmup_s and settings.warmup_s >= trace.span_s:
        raise ConfigError(f"--warmup {settings.warmup_s:g}: the last request is due at {trace.span_s:.1f} s already")
    clock = SystemClock()
    shares = [
        Share(
            server=server, requests=part, seed=settings.seed, deadline_s=settings.deadline_s, drain_s=settings.drain_s
        )
        for part in split(trace, settings.processes or processes_needed(trace))
    ]
    fleet = _Fleet(shares, Progress(total=len(trace.requests)), clock, show)
    try:
        return fleet.run(server, trace, settings)
    finally:
        fleet.close()


def processes_needed(trace: Trace) -> int:
    """For the tokens that a schedule asks for; users who wait for their answers ask for no rate."""
    if not trace.open_loop:
        return 1
    tokens_per_s = sum(request.output_tokens for request in trace.requests) / max(1.0, trace.span_s)
    return max(1, min(math.ceil(tokens_per_s / EVENTS_PER_PROCESS_S), len(os.sched_getaffinity(0)) - 1))


def split(trace: Trace, parts: int) -> list[list[Numbered]]:
    """Requests dealt out in turn; one user's stay together."""
    owner: list[int] = []
    shares: list[list[Numbered]] = [[] for _ in range(min(parts, max(1, len(trace.requests))))]
    roots = 0
    for number, request in enumerate(trace.requests):
        if request.after is None:
            owner.append(roots % len(shares))
            roots += 1
        else:
            owner.append(owner[request.after])
        shares[owner[-1]].append((number, request))
    return [share for share in shares if share] or [[]]


class _Fleet:
    """The client processes of one replay."""

    def __init__(self, shares: Sequence[Share], progress: Progress, clock: Clock, show: Show) -> None:
        self._progress, self._clock, self._show = progress, clock, show
        self._pipes: dict[Connection, int] = {}
        self._processes: list[BaseProcess] = []
        self._prepared = [0] * len(shares)
        self._ended: list[Ended] = []
        self._start_s = 0.0
        context = multiprocessing.get_context("spawn")
        with _ctrl_c_ignored():  # which the new processes inherit until they have their own handler
            for number, share in enumerate(shares):
                ours, theirs = context.Pipe()
                process = context.Process(target=main, args=(share, theirs), name=f"client-{number}", daemon=True)
                process.start()
                theirs.close()
                self._pipes[ours] = number
                self._processes.append(process)

    def run(self, server: Server, trace: Trace, settings: Settings) -> Run:
        while sum(self._prepared) < len(trace.requests):
            self._turn()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._start_s = self._clock.now() + START_IN_S
        self._progress.started = True
        watch = QueueWatch(server, self._start_s, self._clock)
        self._tell(self._start_s)
        reasons, saturation = [], Saturation() if settings.stop_when_saturated else None
        try:
            self._watch(saturation)
        except KeyboardInterrupt:
            reasons.append(INTERRUPTED)
            self._tell(Stop.ALL)
            self._watch(None)
        finally:
            queues = watch.close()
        notes = list(trace.notes + server.remarks)
        records = sorted((r for ended in self._ended for r in ended.records), key=lambda record: record.index)
        scheduled = len(trace.requests)
        if saturation and saturation.since_s is not None:
            notes.append(
                f"stopped at saturation, {saturation.since_s:.0f} s into the schedule; what follows is no miss"
            )
            scheduled = min((record.index for record in records if record.sent_s is None), default=scheduled)
            records = records[:scheduled]
        return Run(
            target=server.base_url, model=server.model, trace=trace.name, schedule_sha256=trace.sha256,
            scheduled=scheduled, records=records,
            window_s=_window_s(records, settings.warmup_s), clients=[ended.process for ended in self._ended],
            queues=queues, notes=notes, invalid_reasons=reasons, started=started,
        )  # fmt: skip

    def close(self) -> None:
        for process in self._processes:
            if len(self._ended) < len(self._processes):
                process.kill()
            process.join(5.0)
        for pipe in self._pipes:
            pipe.close()

    def _watch(self, saturation: Saturation | None) -> None:
        while self._pipes:
            self._turn()
            progress = self._progress
            running = progress.count("sent") - progress.count("done") - progress.count("failed")
            if saturation and saturation.reached(progress.elapsed_s, running, progress.ttft_s):
                self._tell(Stop.SENDING)

    def _turn(self) -> None:
        """Take what the processes said within a moment, and draw."""
        for pipe in wait(list(self._pipes), timeout=DRAW_EVERY_S):
            assert isinstance(pipe, Connection)
            self._take(pipe)
        self._progress.prepared = sum(self._prepared)
        if self._progress.started:
            self._progress.elapsed_s = max(0.0, self._clock.now() - self._start_s)
        self._show(self._progress)

    def _take(self, pipe: Connection) -> None:
        try:
            said: Prepared | Tally | Ended = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ClientDied("a client process died; what it printed is above") from error
        match said:
            case Prepared():
                self._prepared[self._pipes[pipe]] = said.prompts
            case Tally():
                self._progress.add(self._pipes[pipe], said)
            case Ended():
                self._ended.append(said)
                del self._pipes[pipe]
                pipe.close()

    def _tell(self, what: float | Stop) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):
                pipe.send(what)


def _window_s(records: Sequence[Record], warmup_s: float) -> tuple[float, float]:
    """All of the run. With a warm-up: from its end to the last arrival, so that the drain is not measured either."""
    last_due_s = max((record.due_s for record in records), default=0.0)
    if 0 < warmup_s < last_due_s:
        return warmup_s, last_due_s
    return 0.0, max(last_due_s, *(record.done_s or 0.0 for record in records), 1e-3)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
