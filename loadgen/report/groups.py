"""The runs of a page, by target, and their records as arrays for figures."""

from dataclasses import dataclass, field

import numpy as np

from loadgen.measure.latencies import BoolArray, FloatArray, Measured, measured
from loadgen.measure.slo import Slo
from loadgen.record import Run
from loadgen.report.look import colour
from loadgen.report.measures import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run on a page. `run` None: only its result is known, and figures that need records leave it out."""

    target: str  # the name that tells it from others on the page
    result: Result
    run: Run | None = None


@dataclass(slots=True, kw_only=True)
class Group:
    """All runs of one target. `label` ends the names of its lines, and is empty where a page shows one target."""

    name: str
    label: str
    colour: str
    entries: list[Entry]
    runs: list[Run] = field(default_factory=list)  # those with records
    tables: list[Measured] = field(default_factory=list)  # one of each run

    def pooled(self, name: str) -> FloatArray:
        """A column of all runs, one after the other."""
        return np.concatenate([getattr(table, name) for table in self.tables]) if self.tables else np.empty(0)

    def flags(self, name: str) -> BoolArray:
        """The same for `completed` and `counted`."""
        return np.concatenate([getattr(table, name) for table in self.tables]) if self.tables else np.empty(0, np.bool_)

    def sample(self, measure: str) -> FloatArray:
        """What the statistics of a measure are made of, of all runs."""
        return np.concatenate([table.sample(measure)[0] for table in self.tables]) if self.tables else np.empty(0)


def grouped(entries: list[Entry]) -> list[Group]:
    """Targets in the order in which they come first, which also fixes their colours."""
    names = list(dict.fromkeys(entry.target for entry in entries))
    groups = []
    for number, name in enumerate(names):
        mine = [entry for entry in entries if entry.target == name]
        runs = [entry.run for entry in mine if entry.run is not None and entry.run.records]
        label = f" ({name})" if len(names) > 1 else ""
        tables = [measured(run) for run in runs]
        groups.append(Group(name=name, label=label, colour=colour(number), entries=mine, runs=runs, tables=tables))
    return groups


def slo_of(groups: list[Group]) -> Slo | None:
    """The one that all runs of a page were judged by; None without one, or where they differ."""
    texts = {entry.result.get("slo") for group in groups for entry in group.entries}
    text = texts.pop() if len(texts) == 1 else None
    return Slo.parse(text) if text else None


def last_s(table: Measured) -> FloatArray:
    """When each request ended, or showed its last sign of life; NaN: it was never sent."""
    return np.fmax(np.fmax(table.done_s, table.last_s), table.sent_s)
