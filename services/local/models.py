"""`splitmesh models`: the catalogue, what of it is here, and how to fetch one."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from services.local.view import StartView
from shared.cache import default_cache
from shared.clock import SystemClock
from shared.models.catalogue import CATALOGUE, resolve
from shared.models.stored import MANIFEST
from shared.runtime.options import Options


def models(arguments: Sequence[str], console: Console) -> int:
    options = Options("splitmesh models", "Show the models of the catalogue and which of them are here.")
    options.add_argument("--fetch", metavar="MODEL", help="make this model ready for a start without a network")
    given = options.read(arguments)
    if given.fetch:
        _fetch(given.fetch, console)
    else:
        _show(console)
    return 0


def _fetch(model: str, console: Console) -> None:
    with StartView(console, [], SystemClock(), live=console.is_terminal) as view:

        def progress(stage: str, done: int, total: int) -> None:
            view.progress(stage, done, total)
            view.draw()

        files = resolve(model, progress=progress)
        view.end_progress()
    console.print(f"{files.name} is at {files.path}", highlight=False, soft_wrap=True)


def _show(console: Console) -> None:
    table = Table()
    for heading in ("model", "download", "here"):
        table.add_column(heading, overflow="fold")
    for name, source in CATALOGUE.items():
        path = default_cache() / "models" / name
        here = str(path) if (path / MANIFEST).is_file() else "no; fetched by the first `splitmesh up`"
        table.add_row(name, f"{source.size_bytes / 1e6:.0f} MB", here)
    console.print(table)
    console.print("--model also takes a local directory, or a Hugging Face id where the hub can be reached.")
