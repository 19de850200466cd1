"""Start and memory of a mesh: seconds to serving, and what each worker has in memory beside its KV pool.

    python -m tests.bench.memory [--prompts 5] [--tokens 8000] [-- OPTIONS OF splitmesh up]

Resident, and the share of what processes share (PSS); idle, after each long prompt, and after a rest without work. KV
pages are what lies in huge pages (Linux marks that memory), so where these are off nothing is taken off.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.worker.compute import IDLE_S
from tests.support.running import RunningMesh

FIGURES = ("Rss:", "Pss:")


def memory_mb(pid: int) -> tuple[int, int, int]:
    """KV pages, resident and proportional memory without them, in MB."""
    kv = dict.fromkeys(FIGURES, 0)
    total, latest = dict(kv), dict(kv)
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *values = line.split()
        if key in FIGURES:
            latest[key] = int(values[0])
            total[key] += latest[key]
        elif key == "VmFlags:" and "hg" in values:
            kv = {figure: kv[figure] + latest[figure] for figure in FIGURES}
    resident, proportional = ((total[f] - kv[f]) * 1024 // 1_000_000 for f in FIGURES)
    return kv["Rss:"] * 1024 // 1_000_000, resident, proportional


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    started_at = time.monotonic()
    with RunningMesh(*given.options) as mesh:
        table = Table(title=f"serving after {time.monotonic() - started_at:.1f} s; MB")
        for heading in ("", "worker", "KV pages", "beside them: resident", "proportional"):
            table.add_column(heading, justify="left" if heading in ("", "worker") else "right")
        time.sleep(3.0)
        _add(table, mesh, "idle")
        for number in range(given.prompts):
            ids = [(7919 * i + number) % 30_000 for i in range(given.tokens)]
            mesh.post("/v1/completions", {"model": mesh.model, "prompt": ids, "max_tokens": 8})
            time.sleep(1.0)
            _add(table, mesh, f"after {number + 1} prompts")
        time.sleep(IDLE_S + 2.0)
        _add(table, mesh, "after a rest")
    Console().print(table)


def _add(table: Table, mesh: RunningMesh, when: str) -> None:
    for worker in mesh.workers():
        table.add_row(when, worker["role"], *(f"{figure:,}" for figure in memory_mb(worker["pid"])))


if __name__ == "__main__":
    main()
