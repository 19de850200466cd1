"""Figures of a trace for the terminal: a table, the rate over time, histograms of the lengths. All fit 80 columns."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.traces.describe import Figures, arrivals_of
from loadgen.traces.draws import Floats
from loadgen.traces.trace import Trace

CHART_WIDTH, CHART_HEIGHT = 66, 8
BAR_WIDTH = 22
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFT_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def show(trace: Trace, figures: Figures, console: Console) -> None:
    console.print(_table(figures))
    console.print(_length_table(figures))
    for note in figures.notes:
        console.print(Text(f"note: {note}", style="dim"))
    at_s = arrivals_of(trace)
    if figures.mean_rps is not None:
        console.print(Text("\nArrivals, requests a second over time", style="bold"))
        for line in rate_chart(at_s):
            console.print(Text(line), no_wrap=True)
    console.print(Text("\nLengths in tokens, share of requests", style="bold"))
    prompts = [r.prompt_tokens for r in trace.requests]
    outputs = [r.output_tokens for r in trace.requests]
    for line in histograms(prompts, outputs):
        console.print(Text(line), no_wrap=True)


def _table(figures: Figures) -> Table:
    table = Table(title=figures.name, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(figures):
        table.add_row(Text(name), Text(value))
    return table


def _rows(figures: Figures) -> Iterator[tuple[str, str]]:
    found = figures.arrivals
    yield "requests", f"{figures.requests:,}"
    yield "span", f"{figures.span_s:,.1f} s"
    if figures.mean_rps is not None:
        yield "mean rate", f"{figures.mean_rps:,.3f} /s" + (" (first requests of users)" if figures.users else "")
    peaks = [f"{found[f'peak_{w}s_rps']:,.2f} /s in {w} s" for w in (1, 10, 60) if f"peak_{w}s_rps" in found]
    if peaks:
        yield "peak rate", ", ".join(peaks)
    fanos = [f"{found[f'fano_{w}s']:,.2f} at {w} s" for w in (1, 10) if f"fano_{w}s" in found]
    if fanos:
        yield "Fano factor", f"{', '.join(fanos)} (Poisson: 1)"
    if "gap_cv" in found:
        yield "CV of gaps", f"{found['gap_cv']:,.2f} (Poisson: 1)"
    if "empty_1s" in found:
        yield "empty seconds", f"{found['empty_1s']:.1%}"
    yield "tokens", f"{figures.total_prompt_tokens:,} in prompts, {figures.total_output_tokens:,} in answers"
    yield "longest", f"{figures.longest_tokens:,} tokens of prompt and answer"
    if figures.shared:
        yield "shared blocks", f"{figures.shared:.1%} of prompt tokens came before"
    if figures.carried:
        yield "carried on", f"{figures.carried:.1%} of prompt tokens are the chat so far"
    if figures.users:
        yield "users", f"{figures.users:,}, the longest asks {figures.longest_chain:,} times"
    yield "SHA-256", figures.sha256[:16]


def _length_table(figures: Figures) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("tokens")
    rows = (("prompt", figures.prompt_tokens), ("answer", figures.output_tokens))
    shown = [name for name in figures.prompt_tokens if name not in ("min", "p25", "p75")]
    for name in shown:
        table.add_column(name, justify="right")
    for what, lengths in rows:
        table.add_row(what, *(f"{lengths[name]:,.0f}" for name in shown))
    return table


def rate_chart(at_s: Floats) -> list[str]:
    """Bars of the rate in equal slices of the span, the highest rate on the left, time below."""
    span_s = float(at_s[-1])
    slices = max(1, min(CHART_WIDTH, len(at_s)))
    edges = np.linspace(0.0, span_s, slices + 1)
    rates = np.histogram(at_s, edges)[0] * slices / span_s
    top = float(rates.max())
    lines = []
    for row in range(CHART_HEIGHT - 1, -1, -1):
        fill = np.clip(rates / top * CHART_HEIGHT - row, 0.0, 1.0)
        label = (
            f"{top * (row + 1) / CHART_HEIGHT:>9.4g}" if row in (CHART_HEIGHT - 1, CHART_HEIGHT // 2 - 1) else " " * 9
        )
        lines.append(f"{label} │" + "".join(_EIGHTHS[math.ceil(share * 8)] for share in fill))
    end = f"{span_s:,.0f} s"
    lines.append(" " * 10 + "└" + "─" * slices)
    lines.append(" " * 11 + "0" + end.rjust(max(slices - 1, len(end) + 1)))
    return lines


def histograms(prompts: Sequence[int], outputs: Sequence[int]) -> list[str]:
    """One line for each power of two, prompts on the left, answers on the right."""
    counts = [np.bincount([n.bit_length() - 1 for n in tokens]) for tokens in (prompts, outputs)]
    low = min(int(np.flatnonzero(count)[0]) for count in counts)
    high = max(len(count) for count in counts)
    lines = [f"{'':>17}  {'prompts':<{BAR_WIDTH + 7}} answers"]
    for power in range(low, high):
        label = f"{2**power:,}" if power == 0 else f"{2**power:,}–{2 ** (power + 1) - 1:,}"
        sides = [_bar(count, power) for count in counts]
        lines.append(f"{label:>17}  {sides[0]} {sides[1]}".rstrip())
    return lines


def _bar(counts: np.ndarray[tuple[int], np.dtype[np.intp]], power: int) -> str:
    share = counts[power] / counts.sum() if power < len(counts) else 0.0
    eighths = round(share / (counts.max() / counts.sum()) * BAR_WIDTH * 8)
    bar = "█" * (eighths // 8) + _LEFT_EIGHTHS[eighths % 8]
    return f"{bar:<{BAR_WIDTH}} {share:>5.1%} " if share else " " * (BAR_WIDTH + 7)
