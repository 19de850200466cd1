"""How far a replay has come, while it runs: one live line on a terminal, else a plain line now and then.

Cheap on purpose: the process that shows it may also be the one that measures. No thread refreshes it, and snapshots
that come too often are not drawn.
"""

from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.report.measures import time_text

REDRAW_S = 0.25
PLAIN_LINE_S = 10.0
BAR_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Counts of requests and recent medians. Who was sent is running, done (as it should be) or failed."""

    prepared: int  # prompts; nothing is sent before all are
    sent: int
    running: int
    done: int
    failed: int
    total: int
    ttft_p50_s: float | None
    tbt_p50_s: float | None
    elapsed_s: float
    left_s: float | None  # None: nobody can say


class LiveView:
    """`with LiveView(console) as view:` then `view.update(snapshot)` as often as you like."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._last: Snapshot | None = None
        self._drawn: Snapshot | None = None

    def __enter__(self) -> "LiveView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last state stays to be read."""
        if self._last is not None and self._last is not self._drawn:
            self._draw(self._last)
        if self._live is not None:
            self._live.stop()

    def update(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        pause_s = PLAIN_LINE_S if self._live is None else REDRAW_S
        drawn = self._drawn
        if drawn is None or snapshot.elapsed_s - drawn.elapsed_s >= pause_s or _further(snapshot, drawn):
            self._draw(snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        self._drawn = snapshot
        if self._live is None:
            self._console.print(Text(line_of(snapshot)), soft_wrap=True)
        else:
            self._live.update(_drawing(snapshot), refresh=True)


def _further(snapshot: Snapshot, drawn: Snapshot) -> bool:
    """Prompts are made before time runs: shown a tenth at a time, and when all are there."""
    steps = [10 * s.prepared // max(1, s.total) for s in (drawn, snapshot)]
    return steps[0] < steps[1]


def line_of(snapshot: Snapshot) -> str:
    s = snapshot
    if s.prepared < s.total:
        return f"making prompts: {s.prepared} of {s.total}"
    share = (s.done + s.failed) / s.total if s.total else 1.0
    left = "" if s.left_s is None else f", {_clock(s.left_s)} left"
    return (
        f"{share:4.0%} {s.done}/{s.total} done, {s.running} running, {s.sent} sent, {s.failed} failed | "
        f"TTFT p50 {time_text(s.ttft_p50_s)}, TBT p50 {time_text(s.tbt_p50_s)} | {_clock(s.elapsed_s)}{left}"
    )


def _drawing(snapshot: Snapshot) -> Table:
    """The bar and the line side by side; a narrow terminal wraps the line."""
    row = Table.grid(padding=(0, 1))
    style = "red" if snapshot.failed else ""
    bar = ProgressBar(total=max(1, snapshot.total), completed=snapshot.done + snapshot.failed, width=BAR_WIDTH)
    row.add_row(bar, Text(line_of(snapshot), style=style))
    return row


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
