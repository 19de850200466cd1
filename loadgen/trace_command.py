"""`python -m loadgen trace`: list, show, synth, fetch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadgen.report.files import write_json
from loadgen.traces import presets, synth
from loadgen.traces.catalogue import SOURCES
from loadgen.traces.describe import describe
from loadgen.traces.draw import show
from loadgen.traces.fetch import fetch
from loadgen.traces.load import from_arguments
from loadgen.traces.readers import azure, own
from loadgen.traces.wanted import add_arguments
from shared.errors import ConfigError
from shared.runtime.options import Options

PROG = "python -m loadgen trace"
USAGE = f"""\
usage: {PROG} COMMAND [OPTION...]

  list     the names of generated and public traces
  show     what a trace looks like: figures and plots
  synth    write a generated trace, or a scaled one, to a file
  fetch    download a public trace

`{PROG} COMMAND --help` lists the options of a command."""


def run(arguments: Sequence[str], console: Console) -> int:
    """Raises ConfigError for a command or option that makes no sense."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        console.print(USAGE, markup=False, highlight=False)
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; known are {', '.join(COMMANDS)}")
    return COMMANDS[name](rest, console)


def _list(arguments: Sequence[str], console: Console) -> int:
    Options(f"{PROG} list", "The names of generated and public traces.").read(arguments)
    table = Table(box=None, padding=(0, 2, 0, 0), title="Generated: give the name as --trace", title_justify="left")
    for name in synth.NAMES:
        table.add_row(name, f"twin of the Azure trace of 2023, {synth.figures_of(name)['requests']:,} requests")
    for name, preset in presets.PRESETS.items():
        table.add_row(name, preset.about)
    console.print(table)
    table = Table(box=None, padding=(0, 2, 0, 0), title="Public: trace fetch NAME", title_justify="left")
    for name, source in SOURCES.items():
        table.add_row(name, source.about)
    console.print()
    console.print(table)
    return 0


def _show(arguments: Sequence[str], console: Console) -> int:
    parser = Options(f"{PROG} show", "What a trace looks like: figures and plots.")
    add_arguments(parser, positional=True)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    options = parser.read(arguments)
    trace = from_arguments(options)
    figures = describe(trace)
    if options.json is not None:
        write_json(options.json, figures.as_json())
    show(trace, figures, console)
    return 0


def _synth(arguments: Sequence[str], console: Console) -> int:
    parser = Options(f"{PROG} synth", "Writes a trace: Azure's CSV, or one JSON object a line for a name in .jsonl.")
    add_arguments(parser, positional=True)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="ends in .csv or .jsonl")
    options = parser.read(arguments)
    writers = {".csv": azure.write, ".jsonl": own.write}
    if options.out.suffix not in writers:
        raise ConfigError(f"--out must end in .csv or .jsonl, not {options.out.name!r}")
    trace = from_arguments(options)
    writers[options.out.suffix](trace, options.out)
    for note in trace.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{options.out}: {len(trace.requests):,} requests in {trace.span_s:,.1f} s, schedule {trace.sha256}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _fetch(arguments: Sequence[str], console: Console) -> int:
    parser = Options(f"{PROG} fetch", "Downloads a public trace.")
    parser.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--url", help="where it is, when not at its owner's place")
    parser.add_argument("--out", metavar="FILE", type=Path, help="its name here; default: as its owner calls it")
    options = parser.read(arguments)
    fetch(options.name, console, url=options.url, out=options.out)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "list": _list,
    "show": _show,
    "synth": _synth,
    "fetch": _fetch,
}
