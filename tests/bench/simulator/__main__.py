"""What the simulator does and how fast: see its parts.

    python -m tests.bench.simulator speed [--conv FILE] [--rounds 3]       requests per CPU second, growth
    python -m tests.bench.simulator code [--code FILE]                     9 prompt + 1 token machines under overload
    python -m tests.bench.simulator paper [--conv FILE] [--code FILE]      the clusters of the Splitwise paper
    all with [--json FILE]

FILE is a recorded trace (Azure 2023); without it our generator's model of that trace is used. All DGX figures are
simulated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen.traces.load import load
from loadgen.traces.trace import Trace
from tests.bench.simulator import code, paper, speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("speed", "code", "paper"))
    parser.add_argument("--conv", type=Path, help="the recorded conversation trace")
    parser.add_argument("--code", type=Path, help="the recorded coding trace")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console(width=150)
    found: Any
    if args.what == "speed":
        found = speed.run(trace("azure-conv", args.conv), args.rounds, console)
    elif args.what == "code":
        recorded = trace("azure-code", args.code) if args.code else None
        found = code.run(recorded, trace("azure-code", None), console)
    else:
        found = paper.run({"conv": trace("azure-conv", args.conv), "code": trace("azure-code", args.code)}, console)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def trace(name: str, recorded: Path | None) -> Trace:
    return load(str(recorded or name))


if __name__ == "__main__":
    main()
