"""What `splitmesh up` shows while it starts: one row per step, live on a terminal, plain lines elsewhere.

Drawing happens on the caller's thread only, when `draw` is called: there is no refresh thread.
"""

from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.clock import Clock

MARKS = {
    "waiting": ("·", "dim"), "starting": ("…", "yellow"), "ready": ("✓", "green"), "failed": ("✗", "red"),
    "left": ("·", "dim"),
}  # fmt: skip
PLAIN_PROGRESS_STEP = 0.25


@dataclass(slots=True)
class _Row:
    state: str = "waiting"
    note: str = ""
    began_at: float | None = None
    took_s: float | None = None


class StartView:
    """Use as a context manager; `live` False prints a line per change."""

    def __init__(self, console: Console, steps: list[str], clock: Clock, *, live: bool) -> None:
        self._console, self._clock = console, clock
        self._rows = {step: _Row() for step in steps}
        self._progress: tuple[str, int, int] | None = None
        self._announced = ("", 0.0)
        self._live = Live(console=console, auto_refresh=False, transient=False) if live else None

    def __enter__(self) -> "StartView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._live:
            self.draw()
            self._live.stop()

    def set(self, step: str, state: str, note: str = "") -> None:
        row = self._rows[step]
        if (row.state, row.note) == (state, note):
            return
        if state == "starting" and row.state != "starting":
            row.began_at = self._clock.now()
        row.state, row.note = state, note
        row.took_s = self._clock.now() - row.began_at if state == "ready" and row.began_at is not None else None
        if self._live is None and state != "waiting":
            self.say(f"{step:<16} {state:<9}{_noted(row)}".rstrip())

    def progress(self, stage: str, done: int, total: int) -> None:
        """May be called from another thread."""
        self._progress = (stage, done, total)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def draw(self) -> None:
        if self._live:
            self._live.update(self._rendered(), refresh=True)
        elif self._progress:
            self._announce(*self._progress)

    def _announce(self, stage: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        last_stage, last_share = self._announced
        if stage != last_stage or share >= last_share + PLAIN_PROGRESS_STEP or (share == 1.0 > last_share):
            self._announced = (stage, share)
            self.say(f"{stage}: {share:.0%}" if total else stage)

    def _rendered(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for step, row in self._rows.items():
            mark, style = MARKS[row.state]
            table.add_row(Text(mark, style=style), Text(step), Text(row.state, style=style), Text(_noted(row)))
        if self._progress is None:
            return table
        stage, done, total = self._progress
        bar = Table.grid(padding=(0, 1))
        bar.add_row(Text(f"  {stage}"), ProgressBar(total=total or None, completed=done, width=40, pulse=not total))
        return Group(table, bar)

    def end_progress(self) -> None:
        self._progress = None


def _noted(row: _Row) -> str:
    took = f"{row.took_s:.1f} s" if row.took_s is not None else ""
    return "  ".join(part for part in (took, row.note) if part)
