"""All children of `splitmesh up`: which are ready, which fail too often to ever start, and how they are stopped."""

import asyncio
from collections import Counter
from collections.abc import Callable

from services.local.children import FIRST_PAUSE_S, Child, Command, Ended
from shared.clock import Clock
from shared.errors import ConfigError
from shared.tasks import Spawn

MOST_FAILURES = 3  # of one child that was never ready
REFUSED = 2  # the exit code of one that would refuse again
# Who is asked to stop after whom, and how long each stage may take, half a minute in all. Requests drain in the
# gateway; once it has gone, nobody else has work left.
STOP_ORDER = (
    ({"gateway"}, 16.0),
    ({"router"}, 3.0),
    ({"prompt_worker", "token_worker"}, 6.0),
    ({"pool_manager"}, 2.0),
    ({"redis"}, 2.0),
)


class Fleet:
    """`on_state(name, state, note)` is told of every change: starting, ready, failed, left. `failure` appears, and
    `failed` is set, when a child that was never ready refuses to start or has failed too often."""

    def __init__(
        self,
        *,
        spawn: Spawn,
        clock: Clock,
        on_state: Callable[[str, str, str], None],
        on_line: Callable[[str, str], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._spawn, self._clock = spawn, clock
        self._on_state, self._on_line = on_state, on_line
        self._first_pause_s = first_pause_s
        self._children: dict[str, Child] = {}
        self._ready: set[str] = set()
        self._were_ready: set[str] = set()
        self._failures: Counter[str] = Counter()
        self.all_ready = asyncio.Event()
        self.failed = asyncio.Event()
        self.failure: ConfigError | None = None
        self.last_words: tuple[str, ...] = ()  # of the child that failed by a bug, not by a refusal

    def start(self, command: Command) -> None:
        child = Child(
            command, spawn=self._spawn, clock=self._clock, on_line=self._on_line, on_ended=self._on_ended,
            first_pause_s=self._first_pause_s,
        )  # fmt: skip
        self._children[command.name] = child
        self.all_ready.clear()
        self._on_state(command.name, "starting", "")
        child.start()

    def ready(self, pid: int, note: str = "") -> None:
        """This process says that it is ready; strangers are ignored."""
        for name, child in self._children.items():
            if child.pid == pid and name not in self._ready:
                self._ready.add(name)
                self._were_ready.add(name)
                self._on_state(name, "ready", note)
        self._count()

    def _count(self) -> None:
        if len(self._ready) == len(self._children):
            self.all_ready.set()

    def pid(self, name: str) -> int | None:
        return self._children[name].pid

    def _on_ended(self, ended: Ended) -> None:
        self._ready.discard(ended.name)
        self.all_ready.clear()
        if ended.pause_s is None:
            del self._children[ended.name]
            self._on_state(ended.name, "left", "has left; it is not started again")
            self._count()
            return
        self._failures[ended.name] += MOST_FAILURES if ended.exit_code == REFUSED else 1
        hopeless = ended.name not in self._were_ready and self._failures[ended.name] >= MOST_FAILURES
        next_step = "" if hopeless else f"; starting it again in {ended.pause_s:g} s"
        self._on_state(ended.name, "failed", ended.how + next_step)
        if hopeless:
            reason = ended.last_lines[-1].removeprefix("splitmesh: ") if ended.last_lines else ended.how
            self.failure = ConfigError(f"{ended.name} does not start: {reason}")
            self.last_words = () if ended.exit_code == REFUSED else ended.last_lines
            self.failed.set()

    async def stop(self) -> None:
        """TERM stage by stage, KILL for whoever takes too long. Afterwards no process is left."""
        for kinds, limit_s in STOP_ORDER:
            stage = [child for child in self._children.values() if child.command.kind in kinds]
            in_time = await asyncio.gather(*(child.stop(limit_s) for child in stage))
            for child, went in zip(stage, in_time, strict=True):
                if not went:
                    self._on_state(child.command.name, "failed", f"killed: it did not stop within {limit_s:g} s")

    def kill(self) -> None:
        for child in self._children.values():
            child.kill()
