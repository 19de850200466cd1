"""Several targets under the same schedule, for the terminal: a row per measure, ratios with their 95 % intervals."""

from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.report.measures import compared_keys, lower_is_better, ratio_text, shown, title_of, value_at, verdict

STYLE_OF = {"better": "green", "worse": "red", "same": "dim", "different": "bold", "unknown": "dim"}


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """`comparison`: targets, ratios, baseline, schedule_sha256, notes and perhaps answer."""
    _print_invalid(comparison, console)
    console.print(_table(comparison))
    for line in comparison.get("answer") or []:
        console.print(Text(line, style="bold"), soft_wrap=True)
    for note in comparison.get("notes") or []:
        console.print(Text(f"Note: {note}", style="dim"), soft_wrap=True)
    console.print(Text(f"Schedule {comparison['schedule_sha256'][:16]}, the same for every run.", style="dim"))
    _print_invalid(comparison, console)


def compared_rows(comparison: dict[str, Any]) -> list[str]:
    """The usual measures that the comparison has ratios for, in the usual order, then those that nobody here knows;
    without any ratio all usual measures that have a value."""
    named = list(dict.fromkeys(key for ratios in comparison["ratios"].values() for key in ratios))
    if not named:
        return [key for key in compared_keys() if any(v is not None for v in _medians(comparison, key).values())]
    return [key for key in compared_keys() if key in named] + [key for key in named if lower_is_better(key) is None]


def median_of_runs(results: list[dict[str, Any]], key: str) -> float | None:
    values = [value for result in results if (value := value_at(result, key)) is not None]
    return median(values) if values else None


def invalid_runs(comparison: dict[str, Any]) -> list[str]:
    """One line per run that must not be counted on."""
    return [
        f"{name}, run {number}: {'; '.join(result.get('invalid_reasons') or ['no reason was given'])}"
        for name, results in comparison["targets"].items()
        for number, result in enumerate(results, 1)
        if not result["valid"]
    ]


def _medians(comparison: dict[str, Any], key: str) -> dict[str, float | None]:
    return {name: median_of_runs(results, key) for name, results in comparison["targets"].items()}


def _print_invalid(comparison: dict[str, Any], console: Console) -> None:
    for line in invalid_runs(comparison):
        console.print(Text(f"INVALID RUN {line}", style="bold red"), soft_wrap=True)


def _table(comparison: dict[str, Any]) -> Table:
    table = Table(title="Median over runs", title_justify="left", title_style="bold")
    table.add_column("measure")
    for name, results in comparison["targets"].items():
        role = ", baseline" if name == comparison["baseline"] else ""
        runs = "1 run" if len(results) == 1 else f"{len(results)} runs"
        table.add_column(Text(f"{name}\n({runs}{role})"), justify="right")
    for pair in comparison["ratios"]:
        table.add_column(Text(f"{pair}\nratio [95 % interval]"))
    for key in compared_rows(comparison):
        medians = (Text(shown(key, value)) for value in _medians(comparison, key).values())
        ratios = (_ratio(key, ratios.get(key)) for ratios in comparison["ratios"].values())
        table.add_row(Text(title_of(key)), *medians, *ratios)
    return table


def _ratio(key: str, ratio: dict[str, Any] | None) -> Text:
    if ratio is None:
        return Text("")
    return Text(ratio_text(key, ratio), style=STYLE_OF[verdict(key, ratio)])
