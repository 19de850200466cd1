"""What an idle mesh costs: processor time of all its processes, with KV endpoints connected.

    python -m tests.bench.idle [--seconds 30] [-- OPTIONS OF splitmesh up]

One request goes through first, so that links and the KV endpoints between the workers are open.
"""

import argparse
import time

import psutil
from rich.console import Console
from rich.table import Table

from tests.support.running import RunningMesh


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("options", nargs="*")
    args = parser.parse_args()
    with RunningMesh(*args.options) as mesh:
        mesh.post("/v1/completions", {"model": mesh.model, "prompt": "Hello", "max_tokens": 4})
        time.sleep(3.0)
        processes = [psutil.Process(mesh.process.pid), *mesh.processes.values()]
        before = [cpu_s(p) for p in processes]
        started_at = time.monotonic()
        time.sleep(args.seconds)
        elapsed_s = time.monotonic() - started_at
        used = [cpu_s(p) - b for p, b in zip(processes, before, strict=True)]
        table = Table(title=f"idle for {elapsed_s:.0f} s")
        table.add_column("process")
        table.add_column("% of one core", justify="right")
        for process, seconds in zip(processes, used, strict=True):
            table.add_row(" ".join(process.cmdline()[-2:])[-40:], f"{100 * seconds / elapsed_s:.2f}")
        table.add_row("all", f"{100 * sum(used) / elapsed_s:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
