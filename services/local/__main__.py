"""`splitmesh`: the command line for one machine."""

import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from shared.errors import ConfigError, MeshError
from shared.runtime import config, logging, supervise

USAGE = """\
usage: splitmesh COMMAND [OPTION...]

  up       start the whole mesh on this machine and serve until Ctrl-C
  status   show the workers and services of a running mesh
  role     give a worker another home role, or back to the pool manager
  drain    let a worker finish what it has and leave
  models   show the models of the catalogue and which of them are here
  doctor   check versions, memory, Redis, cache and KV transports
  replay   take the decisions in journals again and say what differs

`splitmesh COMMAND --help` lists the options of a command."""


def main() -> int:
    try:
        exit_code = run(sys.argv[1:])
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:  # as in `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}; known are {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except MeshError as error:
        print(f"splitmesh: {error}", file=sys.stderr)
        return 2


def _up(arguments: Sequence[str]) -> int:
    from services.local.terminal import own_foreground
    from services.local.up import up

    settings = config.parse("up", arguments, prog="splitmesh up")
    logging.configure(level=settings.log_level, form=settings.log_format, service="up")
    with own_foreground():
        return supervise.run(lambda supervisor: up(supervisor, settings, Console()))


def _status(arguments: Sequence[str]) -> int:
    from services.local.status import status

    return status(arguments, Console())


def _role(arguments: Sequence[str]) -> int:
    from services.local.operate import role

    return role(arguments, Console())


def _drain(arguments: Sequence[str]) -> int:
    from services.local.operate import drain

    return drain(arguments, Console())


def _models(arguments: Sequence[str]) -> int:
    from services.local.models import models

    return models(arguments, Console())


def _doctor(arguments: Sequence[str]) -> int:
    from services.local.doctor import doctor

    return doctor(arguments, Console())


def _replay(arguments: Sequence[str]) -> int:
    from services.local.replay import replay

    return replay(arguments, Console())


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "up": _up,
    "status": _status,
    "role": _role,
    "drain": _drain,
    "models": _models,
    "doctor": _doctor,
    "replay": _replay,
}

if __name__ == "__main__":
    sys.exit(main())
