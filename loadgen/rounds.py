"""The heart of a comparison: the same schedule on every target in turn, A B A B …, so that what the machine does
meanwhile hits all alike."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from loadgen.client.connect import connect
from loadgen.client.fleet import Settings
from loadgen.client.server import Server
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.record import Run
from loadgen.targets import Serving, Target
from loadgen.traces.trace import Trace
from loadgen.watched import replay_watched, warm_up

START_S = 900.0  # what a command may take until it answers
IDLE_SHARE = 0.1  # of a core: what a target may use while another one is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What is compared under which load. The first target is what the others are measured against, unless `subject`
    names the one that is measured against all others. `idle`: what Splitwise's slow-downs are taken over, once it was
    measured."""

    targets: Sequence[Target]
    trace: Trace
    slo: Slo | None
    idle: IdleSpeed | None = None
    notes: Sequence[str] = ()
    subject: str | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Names of targets: of each pair, the first is told as a multiple of the second."""
        first, *others = [target.name for target in self.targets]
        if self.subject is None:
            return [(other, first) for other in others]
        return [(self.subject, other) for other in (first, *others) if other != self.subject]


def connected(target: Serving, given: argparse.Namespace, console: Console) -> Server:
    with console.status(f"waiting for {target.name} at {target.url} ..."):
        patience_s = START_S if target.is_ours else given.ready_check_timeout_sec
        return connect(target.url, given, patience_s=patience_s, check=target.check)


def alternate(
    targets: Sequence[Serving], servers: Mapping[str, Server], trace: Trace, settings: Settings, *, repeats: int,
    warmups: int, console: Console,
) -> dict[str, list[Run]]:  # fmt: skip
    """Runs by target, `repeats` each, or as many whole rounds as there were before Ctrl-C. Prompts differ from repeat
    to repeat and are the same for all targets. Raises KeyboardInterrupt when no round is whole."""
    runs: dict[str, list[Run]] = {target.name: [] for target in targets}
    for target in targets:
        warm_up(servers[target.name], trace, warmups, console, deadline_s=settings.deadline_s)
    for repeat in range(repeats):
        own = dataclasses.replace(settings, seed=settings.seed + repeat)
        for target in targets:
            title = f"run {repeat + 1} of {repeats}, {target.name}"
            before = {other.name: other.cpu_s() for other in targets if other is not target}
            run = replay_watched(servers[target.name], trace, own, console, title=title)
            if run.interrupted:
                return _whole_rounds(runs, repeat)
            notes = [note for other in targets if (note := _not_idle(other, before.get(other.name), run))]
            runs[target.name].append(dataclasses.replace(run, target=target.name, notes=[*run.notes, *notes]))
            for one in targets:
                one.check()
    return runs


def _whole_rounds(runs: dict[str, list[Run]], rounds: int) -> dict[str, list[Run]]:
    if rounds == 0:
        raise KeyboardInterrupt
    return {name: own[:rounds] for name, own in runs.items()}


def _not_idle(other: Serving, before_s: float | None, run: Run) -> str | None:
    now_s = other.cpu_s()
    if before_s is None or now_s is None:
        return None
    share = (now_s - before_s) / max(1e-3, run.window_s[1])
    return f"{other.name} used {share:.0%} of a core meanwhile" if share > IDLE_SHARE else None
