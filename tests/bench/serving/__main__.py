"""This mesh, in its modes, and other servers through HTTP, one at a time, in alternating rounds.

    python -m tests.bench.serving [--peer NAME='COMMAND with {port}' ...] [--mesh NAME='options of splitmesh up' ...]
        [--rounds 3] [--parts start,alone,streams,interference] [--json FILE]

start          seconds from exec until it answers, memory after the other parts, size of its KV cache
alone          one request at a time: TTFT by length of the prompt, pace of a single stream
streams        closed loops of 4 and 16 users: throughput, TTFT, times between tokens
interference   what a long prompt every 4 s (--every) does to 4 running streams

A round takes about two minutes a server. Prompts are token ids, drawn anew for each request and the same for all
servers; lengths are forced, and whatever did not get exactly its tokens is counted as a fault. A peer that cannot be
started is left out. The best peer of each column is marked with *.
"""

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen.record import Record
from shared.errors import ConfigError
from tests.bench.serving import tables
from tests.bench.serving.figures import QUICK, Plan, Taken
from tests.bench.serving.parts import PARTS
from tests.bench.serving.targets import Contestant
from tests.bench.serving.turns import START, Bench, Turn

ALL = (START, *PARTS)
MESHES = (
    "mesh=",
    "mesh-colocated=--prompt-workers 0 --token-workers 0 --mixed-workers 1",
    "mesh-int4=--quantize int4",
)
WIDTH = 150


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if something was measured."""
    given = _options().parse_args(arguments)
    console = Console(width=WIDTH, soft_wrap=False)
    try:
        bench = _bench(given, console)
    except ConfigError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
    signal.signal(signal.SIGTERM, bench.end)
    bench.run()
    tables.show(bench.turns, bench.plan, console)
    for name, why in bench.skipped.items():
        console.print(f"left out: {name}: {why}", highlight=False, markup=False)
    if given.json:
        given.json.write_text(json.dumps(_all(bench), default=_plain))
    return 0 if any(turn.parts or turn.figures for turn in bench.turns) else 1


def _bench(given: argparse.Namespace, console: Console) -> Bench:
    meshes = [] if given.no_mesh else given.mesh or MESHES
    contestants = [*map(Contestant.peer, given.peer), *map(Contestant.mesh, meshes)]
    names = [contestant.name for contestant in contestants]
    if not names or len(set(names)) < len(names):
        raise ConfigError("expected at least one --peer or --mesh, with different names")
    plan = dataclasses.replace(QUICK if given.quick else Plan(), **({"every_s": given.every} if given.every else {}))
    return Bench(
        contestants=contestants, plan=plan, parts=given.parts, rounds=given.rounds,
        keep=given.keep, start_timeout_s=given.start_timeout, seed=given.seed, console=console,
    )  # fmt: skip


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="its port is {port}")
    parser.add_argument("--mesh", action="append", default=[], metavar="NAME=OPTIONS", help=f"default: {MESHES}")
    parser.add_argument("--no-mesh", action="store_true", help="peers only")
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--parts", type=_parts, default=ALL, help=f"some of {','.join(ALL)}")
    parser.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True,
        help="start each peer once and stop its processes while others are measured (meshes are always started anew)",
    )  # fmt: skip
    parser.add_argument("--start-timeout", type=float, default=300.0, metavar="S", help="seconds until it must answer")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--every", type=float, metavar="S", help="between long prompts of `interference` (4)")
    parser.add_argument("--quick", action="store_true", help="tiny, to see whether all goes well; figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := [part for part in parts if part not in ALL]:
        raise argparse.ArgumentTypeError(f"unknown part {unknown[0]!r}; there are {', '.join(ALL)}")
    return parts


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 on")
    return int(text)


def _all(bench: Bench) -> dict[str, Any]:
    return {
        "machine": {
            "cores": len(os.sched_getaffinity(0)), "processor": _processor(), "python": platform.python_version(),
        },
        "arguments": sys.argv[1:],
        "commands": {one.name: one.target.command for one in bench.contestants},
        "plan": dataclasses.asdict(bench.plan),
        "medians": tables.as_json(bench.turns),
        "left_out": bench.skipped,
        "turns": bench.turns,
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _plain(value: Any) -> Any:
    """What JSON does not know by itself."""
    if isinstance(value, Record):
        return dataclasses.asdict(value) | {"outcome": value.outcome.value}
    if isinstance(value, Turn | Taken):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    raise TypeError(type(value).__name__)


if __name__ == "__main__":
    sys.exit(main())
