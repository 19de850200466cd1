"""`python -m loadgen`: replay traces against any OpenAI-compatible server, measure, compare, simulate.

Exit codes: 0 a valid result, 2 a wrong option or a server that cannot be asked, 3 a result that must not be trusted.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.console import Console

from shared.errors import ConfigError, MeshError

USAGE = """\
usage: python -m loadgen COMMAND [OPTION...]

  replay    send a trace to a server and say how it went
  compare   send the same trace to several servers in turn and say what differs
  simulate  send a trace to a cluster that is only described
  trace     list, show, fetch and make traces

`python -m loadgen COMMAND --help` lists the options of a command."""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        exit_code = run(sys.argv[1:])
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:  # as in `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("loadgen: stopped", file=sys.stderr)
        return 130


def _end(number: int, frame: object) -> NoReturn:
    """As an exception it passes through what stops the servers that were started."""
    raise SystemExit(128 + number)


def run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}; known are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest, Console())
    except MeshError as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return 2


def _replay(arguments: Sequence[str], console: Console) -> int:
    from loadgen.replay import replay

    return replay(arguments, console)


def _compare(arguments: Sequence[str], console: Console) -> int:
    from loadgen.compare import compare

    return compare(arguments, console)


def _simulate(arguments: Sequence[str], console: Console) -> int:
    from loadgen.sim.command import simulate_command

    return simulate_command(arguments, console)


def _trace(arguments: Sequence[str], console: Console) -> int:
    from loadgen.trace_command import run

    return run(arguments, console)


COMMANDS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "replay": _replay,
    "compare": _compare,
    "simulate": _simulate,
    "trace": _trace,
}

if __name__ == "__main__":
    sys.exit(main())
