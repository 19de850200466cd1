"""Rounds of turns, A B C A B C: in its turn a server has the machine to itself, and all parts are asked of it."""

import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import uvloop
from rich.console import Console

from shared.errors import ConfigError
from tests.bench.serving import figures
from tests.bench.serving.figures import Figures, Plan, Taken
from tests.bench.serving.parts import PARTS, Asker
from tests.bench.serving.targets import Contestant, Standing, Told, fresh_connections, standing, told

START, MACHINE = "start", "machine"
WARM_SEED = 2**31  # other prompts than any that are measured
WARM_TOKENS = (128, 8)
ABOUT_S = {"alone": 40.0, "streams": 60.0, "interference": 45.0}


@dataclass(slots=True, kw_only=True)
class Turn:
    """What one server showed in one round. `figures` by the title of their table. `workers_mb`: of a mesh."""

    name: str
    number: int
    is_mesh: bool
    parts: dict[str, Taken] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)  # by part
    workers_mb: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Bench:
    """All rounds. A server that fails is left out from then on; `skipped` says why."""

    contestants: Sequence[Contestant]
    plan: Plan
    parts: Sequence[str]
    rounds: int
    keep: bool
    start_timeout_s: float
    seed: int
    console: Console
    turns: list[Turn] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _ending: bool = False
    _kept: dict[str, tuple[Standing, ExitStack]] = field(default_factory=dict)
    _took_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def run(self) -> None:
        """Ctrl-C ends it early, with what there is."""
        try:
            for number in range(1, self.rounds + 1):
                for contestant in self.contestants:
                    if self._ending:
                        raise KeyboardInterrupt
                    if contestant.name not in self.skipped:
                        self._try(contestant, number)
        except KeyboardInterrupt:
            self.console.print("\ninterrupted: what follows is what there was until then")
        finally:
            with ExitStack() as ends:
                for _, own in self._kept.values():
                    ends.push(own)

    def end(self, *signal_and_frame: Any) -> None:
        """As Ctrl-C does, but not forgotten when it comes while a server is being stopped."""
        self._ending = True
        signal.raise_signal(signal.SIGINT)

    def _try(self, contestant: Contestant, number: int) -> None:
        try:
            with self._up(contestant, number) as one:
                self._turn(one, number)
        except ConfigError as error:
            self.skipped[contestant.name] = str(error)
            self.console.print(f"[yellow]{contestant.name} is left out: {error}[/]", highlight=False)

    @contextmanager
    def _up(self, contestant: Contestant, number: int) -> Iterator[Standing]:
        """The server, running. Afterwards it is paused if it is kept and well, else stopped."""
        with ExitStack() as own:
            if kept := self._kept.pop(contestant.name, None):
                one, ends = kept
                own.push(ends)
                one.go_on()
            else:
                with self._said(number, contestant.name, START):
                    one = own.enter_context(standing(contestant, start_timeout_s=self.start_timeout_s))
            yield one
            if self.keep and not contestant.is_mesh and number < self.rounds:
                one.pause()
                self._kept[contestant.name] = (one, own.pop_all())

    def _turn(self, one: Standing, number: int) -> None:
        turn = Turn(name=one.contestant.name, number=number, is_mesh=one.contestant.is_mesh)
        turn.remarks += one.server.remarks
        self.turns.append(turn)
        busy = Busy(one)
        try:
            uvloop.run(self._parts(one, turn))
        finally:
            self._note(turn, one, busy)
        one.serving.check()

    async def _parts(self, one: Standing, turn: Turn) -> None:
        name, url = one.contestant.name, one.server.base_url
        async with fresh_connections() as session:
            await Asker(session, one.server, WARM_SEED + turn.number).one(*WARM_TOKENS)
            asker = Asker(session, one.server, self.seed * 1000 + turn.number)
            for part in (part for part in self.parts if part in PARTS):
                gc.collect()
                gc.disable()
                with self._said(turn.number, name, part):
                    turn.parts[part] = await PARTS[part](asker, self.plan)
                gc.enable()
                one.serving.check()
            about = await told(session, url, is_mesh=turn.is_mesh)
        turn.workers_mb = dict(about.workers_mb)
        if START in self.parts:
            turn.figures[START] = _of_start(one, about)

    def _note(self, turn: Turn, one: Standing, busy: "Busy") -> None:
        for part, taken in turn.parts.items():
            turn.figures |= figures.PARTS[part](taken, self.plan)
            turn.faults[part] = figures.faults(taken)
        turn.figures.setdefault(START if START in self.parts else MACHINE, {})[figures.OTHERS] = busy.others()
        each = figures.tokens_per_event(turn.parts.values())
        if each is not None and abs(each - 1) > 0.01:
            turn.remarks.append(f"its events carry {each:.2f} tokens each: TBT is the time between events")

    @contextmanager
    def _said(self, number: int, name: str, part: str) -> Iterator[None]:
        """A line that says what runs and how long that took the last time, and then how long it took."""
        about_s = self._took_s.get((name, part), ABOUT_S.get(part))
        about = f" (about {about_s:.0f} s)" if about_s and self.plan is not figures.QUICK else ""
        self.console.print(f"round {number} of {self.rounds}, {name}: {part}{about} ...", end=" ", highlight=False)
        began_s = time.monotonic()
        try:
            yield
        except BaseException:
            self.console.print("no")
            raise
        self._took_s[name, part] = time.monotonic() - began_s
        self.console.print(f"{self._took_s[name, part]:.1f} s", highlight=False)


def _of_start(one: Standing, about: Told) -> Figures:
    kv_tokens = None if about.kv_tokens is None else float(about.kv_tokens)
    return {
        "ready s": one.ready_s,
        "first answers s": one.answered_s,
        "PSS MB": one.memory_mb(),
        figures.KV: kv_tokens,
    }


class Busy:
    """Processor time of the machine that is neither the server's nor ours: what disturbed the figures."""

    def __init__(self, one: Standing) -> None:
        self._one = one
        self._began = self._now()

    def others(self) -> float | None:
        """Cores, on average since the beginning."""
        elapsed_s, busy_s, own_s = (now - then for now, then in zip(self._now(), self._began, strict=True))
        return max(0.0, busy_s - own_s) / elapsed_s if elapsed_s > 0 else None

    def _now(self) -> tuple[float, float, float]:
        all_times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        busy_s = sum(all_times) - all_times.idle - all_times.iowait - all_times.guest - all_times.guest_nice
        return time.monotonic(), busy_s, (self._one.serving.cpu_s() or 0.0) + own.user + own.system
