"""`splitmesh status`: the picture that a running gateway has of its mesh."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from services.local.asking import Gateway, add_gateway_options
from shared.runtime.options import Options

STATE_STYLES = {"ready": "green", "starting": "yellow", "draining": "yellow", "lost": "red"}


def status(arguments: Sequence[str], console: Console) -> int:
    options = Options("splitmesh status", "Show the workers and services of a running mesh.")
    add_gateway_options(options)
    options.add_argument("--json", action="store_true", help="print what /mesh answers, unchanged")
    given = options.read(arguments)
    raw = Gateway(given.url).text("/mesh")
    if given.json:
        print(raw)
    else:
        _show(json.loads(raw), console)
    return 0


def _show(mesh: dict[str, Any], console: Console) -> None:
    workers = _table("worker", "home", "pool", "state", "queued", "running", "KV blocks", "via", "cores", "pid")
    for worker in mesh.get("workers", []):
        blocks = f"{worker['kv_blocks_used']}/{worker['kv_blocks_total']}"
        workers.add_row(
            worker["id"], worker["role"], worker["pool"], _styled(worker["state"]), str(worker["queue_tokens"]),
            str(worker["running"]), blocks, worker["transport"], worker["cores"] or "any",
            str(worker["pid"]),
        )  # fmt: skip
    services = _table("service", "id", "state", "pid")
    for service in mesh.get("services", []):
        services.add_row(service["service"], service["id"], _styled(service["state"]), str(service["pid"]))
    console.print(f"splitmesh {mesh.get('version', '')}, {', '.join(mesh.get('models', []))}\n", highlight=False)
    console.print(workers)
    console.print()
    console.print(services)


def _table(*headings: str) -> Table:
    """Narrow: all columns of the workers fit into 80 characters."""
    table = Table(box=None, collapse_padding=True, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("queued", "running", "KV blocks") else "left")
    return table


def _styled(state: str) -> str:
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state
