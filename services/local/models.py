"""`splitmesh models`: the catalogue, and what of it is here."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from services.local.options import Options
from shared.models.catalogue import CATALOGUE, default_cache
from shared.models.stored import MANIFEST


def models(arguments: Sequence[str], console: Console) -> int:
    Options("models", "Show the models of the catalogue and which of them are here.").read(arguments)
    table = Table()
    for heading in ("model", "download", "here"):
        table.add_column(heading, overflow="fold")
    for name, source in CATALOGUE.items():
        path = default_cache() / "models" / name
        here = str(path) if (path / MANIFEST).is_file() else "no; fetched by the first `splitmesh up`"
        table.add_row(name, f"{source.size_bytes / 1e6:.0f} MB", here)
    console.print(table)
    console.print("--model also takes a local directory, or a Hugging Face id where the hub can be reached.")
    return 0
