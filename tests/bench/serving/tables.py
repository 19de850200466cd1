"""The figures as tables: a row per server with medians over rounds, then a row per mesh and peer that compares them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.serving import figures
from tests.bench.serving.figures import Figures, Plan
from tests.bench.serving.turns import MACHINE, START, Turn

MARK = "*"
WORST_TOLD = 3

Rows = dict[str, Figures]


def titles(turns: Iterable[Turn]) -> list[str]:
    return list(dict.fromkeys(title for turn in turns for title in turn.figures))


def rows(turns: Sequence[Turn], title: str) -> Rows:
    """Medians over rounds, by server."""
    names = dict.fromkeys(turn.name for turn in turns if title in turn.figures)
    return {
        name: figures.medians([turn.figures[title] for turn in turns if turn.name == name and title in turn.figures])
        for name in names
    }


def show(turns: Sequence[Turn], plan: Plan, console: Console) -> None:
    meshes = {turn.name for turn in turns if turn.is_mesh}
    flagged = {title: _flagged(turns, plan, title) for title in titles(turns)}
    for title in titles(turns):
        console.print(drawn(title, rows(turns, title), meshes, flagged[title]))
    for line in dict.fromkeys([*_workers(turns), *_faults(turns), *_remarks(turns)]):
        console.print(line, highlight=False, markup=False)


def drawn(title: str, found: Mapping[str, Figures], meshes: set[str], flagged: Mapping[str, int]) -> Table:
    """The best peer of each column is marked; below, each mesh over that peer. `flagged`: faulty requests by server."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    headings = list(dict.fromkeys(heading for row in found.values() for heading in row))
    table.add_column("")
    counted = ["faults"] if title not in (START, MACHINE) else []
    for heading in (*headings, *counted):
        table.add_column(heading, justify="right")
    peers = {name: row for name, row in found.items() if name not in meshes}
    best = {heading: figures.best(heading, peers) for heading in headings}
    for name, row in (peers | dict(found)).items():
        cells = [number(row.get(heading)) + (MARK if best[heading] == name else "") for heading in headings]
        faults = flagged.get(name, 0)
        table.add_row(name, *cells, *[f"[red]{faults}[/]" if faults else "0" for _ in counted])
    for name in (name for name in found if name in meshes and peers):
        cells = [_ratio(found[name], peers, heading, best[heading]) for heading in headings]
        table.add_row(f"{name} / best peer", *cells)
    return table


def _ratio(ours: Figures, peers: Mapping[str, Figures], heading: str, best: str | None) -> str:
    ratio = figures.over(ours.get(heading), peers[best].get(heading)) if best else None
    if ratio is None:
        return "-"
    verdict = figures.verdict(ratio, heading)
    colour = {"better": "green", "worse": "red"}.get(verdict, "white")
    return f"[{colour}]{number(ratio) if ratio >= 0.1 else f'{ratio:.2g}'}x {verdict}[/]"


def number(value: float | None) -> str:
    """With about three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def part_of(title: str, plan: Plan) -> str:
    """Which part a table belongs to."""
    if title in (START, MACHINE, "alone"):
        return title
    return "interference" if title in (plan.quiet_title, plan.disturbed_title) else "streams"


def _flagged(turns: Iterable[Turn], plan: Plan, title: str) -> dict[str, int]:
    """Requests of the whole part that did not get exactly their tokens, over all rounds."""
    counts: dict[str, int] = {}
    for turn in turns:
        counts[turn.name] = counts.get(turn.name, 0) + len(turn.faults.get(part_of(title, plan), []))
    return counts


def _faults(turns: Iterable[Turn]) -> Iterable[str]:
    for turn in turns:
        for part, whys in turn.faults.items():
            if whys:
                told = "; ".join(list(dict.fromkeys(whys))[:WORST_TOLD])
                yield f"! {turn.name}, round {turn.number}, {part}: {len(whys)} faulty: {told}"


def _workers(turns: Iterable[Turn]) -> Iterable[str]:
    last = {turn.name: turn.workers_mb for turn in turns if turn.workers_mb}
    for name, workers in last.items():
        yield f"{name}, PSS of its workers in the last round: " + ", ".join(
            f"{w} {mb:.0f} MB" for w, mb in workers.items()
        )


def _remarks(turns: Iterable[Turn]) -> Iterable[str]:
    for turn in turns:
        for remark in turn.remarks:
            yield f"{turn.name}: {remark}"


def as_json(turns: Sequence[Turn]) -> dict[str, Any]:
    """The medians, by table and server."""
    return {title: rows(turns, title) for title in titles(turns)}
