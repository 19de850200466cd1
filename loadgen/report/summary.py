"""A run's result for the terminal: 50 columns, the names and order that users of `vllm bench serve` know.

Times are milliseconds. A run that is not valid says so above and below its numbers.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from loadgen.report.measures import (
    ENOUGH_FOR_P99,
    LATENCIES,
    MISSING,
    STATISTICS,
    Result,
    attainment_interval,
    splitwise_rows,
    splitwise_value,
)

WIDTH = 50
NAME_WIDTH = 39
RED, PLAIN, DIM = "bold red", "", "dim"

Line = tuple[str, str]  # text and its style


def print_summary(result: Result, console: Console) -> None:
    for text, style in summary_lines(result):
        console.print(Text(text, style=style), soft_wrap=True)


def summary_lines(result: Result) -> Iterator[Line]:
    yield from _invalid(result)
    yield f"{' Serving Benchmark Result ':=^{WIDTH}}", "bold"
    yield from _counts(result)
    for latency in LATENCIES:
        yield f"{latency.title:-^{WIDTH}}", PLAIN
        yield from _latency(latency.short, result.get(latency.key) or {})
    yield from _slo(result)
    yield from _search((result.get("goodput_search") or {}).get("best") or {})
    yield from _splitwise(result.get("splitwise"))
    yield from _errors(result.get("errors") or {})
    yield "=" * WIDTH, "bold"
    yield from _foot(result)
    yield from _invalid(result)


def _invalid(result: Result) -> Iterator[Line]:
    if result["valid"]:
        return
    yield f"{' INVALID RUN ':!^{WIDTH}}", RED
    for reason in result.get("invalid_reasons") or ["no reason was given"]:
        yield from _wrapped(reason, RED)
    yield "These numbers say nothing about the server.", RED


def _counts(result: Result) -> Iterator[Line]:
    requests = result["requests"]
    yield _row("Successful requests:", str(requests["completed"])), PLAIN
    yield _row("Failed requests:", str(requests["failed"])), RED if requests["failed"] else PLAIN
    yield _row("Rejected requests:", str(requests["rejected"])), RED if requests["rejected"] else PLAIN
    yield _row("Scheduled requests:", str(requests["scheduled"])), PLAIN
    yield _row("Benchmark duration (s):", _number(result["duration_s"])), PLAIN
    yield _row("Total input tokens:", _total(result, "input_tokens_per_s")), PLAIN
    yield _row("Total generated tokens:", _total(result, "output_tokens_per_s")), PLAIN
    yield _row("Request throughput (req/s):", _number(result["requests_per_s"])), PLAIN
    yield _row("Request goodput (req/s):", _number(result["goodput_rps"])), PLAIN
    yield _row("Output token throughput (tok/s):", _number(result["output_tokens_per_s"])), PLAIN


def _latency(short: str, statistics: Result) -> Iterator[Line]:
    for key, name in STATISTICS:
        value = statistics.get(key)
        mark = "*" if key == "p99" and value is not None and statistics["n"] < ENOUGH_FOR_P99 else ""
        yield _row(f"{name} {short} (ms):", _number(value, 1e3) + mark), PLAIN


def _slo(result: Result) -> Iterator[Line]:
    if not result.get("slo"):
        return
    yield f"{'Service Level Objective':-^{WIDTH}}", PLAIN
    yield from _wrapped(f"SLO: {result['slo']}", PLAIN)
    yield _row("SLO attainment (%):", _number(result["attainment"], 100)), "bold"
    interval = attainment_interval(result)
    if interval is not None:
        yield _row("  95 % interval (%):", f"{interval[0] * 100:.1f}-{interval[1] * 100:.1f}"), PLAIN
    for key, share in (result.get("attainment_each") or {}).items():
        yield _row(f"  {key} met (%):", _number(share, 100)), PLAIN


def _search(best: dict[str, float | None]) -> Iterator[Line]:
    """The highest rate that still met the SLO for so large a share of requests."""
    for share, rate in best.items():
        yield _row(f"Highest rate at {float(share) * 100:g} % (req/s):", _number(rate)), "bold"


def _splitwise(splitwise: dict[str, Any] | None) -> Iterator[Line]:
    if splitwise is None:
        return
    yield f"{'Splitwise SLO: slowdown/limit':-^{WIDTH}}", PLAIN
    rows = splitwise_rows(splitwise)
    quantiles = list(dict.fromkeys(quantile for cells in rows.values() for quantile in cells))
    yield " " * 8 + "".join(f"{quantile.upper():>14}" for quantile in quantiles), PLAIN
    for name, cells in rows.items():
        yield f"{name.upper():<8}" + "".join(f"{_cell(cells.get(quantile)):>14}" for quantile in quantiles), PLAIN
    yield _row("All met:", "yes" if splitwise["met"] else "NO"), "bold" if splitwise["met"] else RED


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return MISSING
    return f"{splitwise_value(cell)}/{cell['limit']:.3g} {'ok' if cell['met'] else 'MISS'}"


def _errors(errors: dict[str, int]) -> Iterator[Line]:
    if not errors:
        return
    yield f"{'Errors':-^{WIDTH}}", PLAIN
    for message, count in sorted(errors.items(), key=lambda item: -item[1]):
        yield from _wrapped(f"{count} × {message}", RED)


def _foot(result: Result) -> Iterator[Line]:
    start_s, end_s = result["window_s"]
    yield from _wrapped(f"Measured from {_number(start_s)} s to {_number(end_s)} s of the run.", DIM)
    few = [found for latency in LATENCIES if (found := result.get(latency.key)) and 0 < found["n"] < ENOUGH_FOR_P99]
    if few:
        yield f"* P99 of fewer than {ENOUGH_FOR_P99:,} samples", DIM
    for note in result.get("notes") or []:
        yield from _wrapped(f"Note: {note}", DIM)


def _row(name: str, value: str) -> str:
    return f"{name:<{NAME_WIDTH}} {value}"


def _total(result: Result, rate: str) -> str:
    """Of the measured window, like the rate."""
    if result[rate] is None or result["duration_s"] is None:
        return MISSING
    return str(round(result[rate] * result["duration_s"]))


def _number(value: float | None, scale: float = 1.0) -> str:
    return MISSING if value is None else f"{value * scale:.2f}"


def _wrapped(text: str, style: str) -> Iterator[Line]:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False):
        yield line, style
