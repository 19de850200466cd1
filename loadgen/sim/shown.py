"""The terminal's part of a simulation: what each pool did, and what it cost."""

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loadgen.measure.result import Result
from loadgen.report.measures import MISSING, rate_text

REDRAW_S = 0.25
MOST_CHANGES = 5


def print_simulation(result: Result, console: Console) -> None:
    simulation = result["simulation"]
    table = Table(title="Pools, by home role at the end", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("pool")
    for heading in ("machines", "observed", "busy", "prompts", "decodes", "both"):
        table.add_column(heading, justify="right")
    for role, pool in simulation["pools"].items():
        if pool["machines"] or pool["mean_observed"]:
            shares = (pool[f"{name}_share"] for name in ("busy", "prefill", "decode", "mixed"))
            observed = MISSING if pool["mean_observed"] is None else f"{pool['mean_observed']:.1f}"
            table.add_row(role, str(pool["machines"]), observed, *(_percent(value) for value in shares))
    console.print(table)
    for line in _lines(simulation):
        console.print(Text(line), soft_wrap=True)


def _lines(simulation: dict[str, Any]) -> Iterator[str]:
    machines = ", ".join(f"{count} {name}" for name, count in simulation["machines"].items())
    yield f"Policy {simulation['policy']}, cost model {simulation['cost_model']}, {machines}"
    changes = simulation["role_changes"]
    yield f"Role changes: {len(changes)}"
    for change in changes[:MOST_CHANGES]:
        yield (
            f"  {change['at_s']:.1f} s: {change['worker']} from {change['was']} to {change['role']}, {change['reason']}"
        )
    if len(changes) > MOST_CHANGES:
        yield f"  and {len(changes) - MOST_CHANGES} more"
    yield f"Cost ${simulation['cost_usd']:,.2f}, energy {simulation['energy_wh'] / 1000:,.2f} kWh"
    speed = simulation["requests_per_cpu_s"]
    yield f"Simulated {MISSING if speed is None else rate_text(speed)} requests per CPU second"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value * 100:.0f} %"


class ProgressBar:
    """`with ProgressBar(console, "simulating") as show:` then `show(done, total)` as often as you like. On what is no
    terminal nothing is shown. No thread refreshes it: it would steal from what is measured."""

    def __init__(self, console: Console, title: str) -> None:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("", total=None)
        self._drawn_s = 0.0

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        now = perf_counter()
        if now - self._drawn_s >= REDRAW_S:
            self._drawn_s = now
            self._progress.update(self._task, completed=done, total=total, refresh=True)
