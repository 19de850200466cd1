"""`splitmesh role` and `splitmesh drain`: give a worker another home by hand, or send it away.

Both go through a gateway, so they work from wherever its API is reached; they return when the mesh shows that it is
done. A role that an operator chose stays until `auto` gives the worker back to the pool manager.
"""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from rich.console import Console

from services.local.asking import Gateway, add_gateway_options, add_key_option
from shared.clock import Clock, SystemClock
from shared.errors import ConfigError
from shared.runtime.options import Options

ROLES = ("prompt", "token", "mixed", "auto")
LOOK_EVERY_S = 0.05
HEARD_WITHIN_S = 5.0
SAY_EVERY_S = 2.0


def role(arguments: Sequence[str], console: Console) -> int:
    options = Options("splitmesh role", "Give a worker another home role; `auto` leaves it to the pool manager again.")
    options.add_argument("worker", help="its id in `splitmesh status`, or its plain name")
    options.add_argument("role", choices=ROLES)
    add_gateway_options(options)
    add_key_option(options)
    given = options.read(arguments)
    gateway, clock = Gateway(given.url, given.api_key), SystemClock()
    before = {worker["id"]: worker for worker in gateway.ask("/mesh")["workers"]}
    asked_at = clock.now()
    worker_id = gateway.ask(f"/mesh/workers/{quote(given.worker, safe='')}/role", {"role": given.role})["worker"]
    was = before.get(worker_id, {}).get("role", "unknown")
    now = _until_set(gateway, worker_id, given.role, clock)
    took = f"{clock.now() - asked_at:.2f} s"
    if given.role == "auto":
        _say(console, f"{worker_id} stays {now} until the pool manager moves it")
    elif now == was:
        _say(console, f"{worker_id} was {was} already; the pool manager leaves it so")
    else:
        _say(console, f"{worker_id}: {was} → {now} within {took}; work in flight stays where it is")
    return 0


def drain(arguments: Sequence[str], console: Console) -> int:
    options = Options("splitmesh drain", "Let a worker finish what it has and leave; wait until it has left.")
    options.add_argument("worker", help="its id in `splitmesh status`, or its plain name")
    options.add_argument("--force", action="store_true", help="even if nobody else could serve its model")
    add_gateway_options(options)
    add_key_option(options)
    given = options.read(arguments)
    gateway, clock = Gateway(given.url, given.api_key), SystemClock()
    asked_at = clock.now()
    worker_id = gateway.ask(f"/mesh/workers/{quote(given.worker, safe='')}/drain", {"force": given.force})["worker"]
    said_at, said = float("-inf"), ""
    while (worker := _find(gateway, worker_id)) is not None:
        if worker["state"] == "ready" and clock.now() - asked_at > HEARD_WITHIN_S:
            raise ConfigError(f"{worker_id} did not take the order within {HEARD_WITHIN_S:g} s")
        line = f"draining {worker_id}: {worker['running']} running, {worker['waiting']} waiting"
        if clock.now() - said_at >= SAY_EVERY_S and line != said:
            _say(console, line)
            said_at, said = clock.now(), line
        time.sleep(LOOK_EVERY_S)
    _say(console, f"{worker_id} has left after {clock.now() - asked_at:.1f} s")
    return 0


def _until_set(gateway: Gateway, worker_id: str, wanted: str, clock: Clock) -> str:
    """The home role that the mesh shows once the worker has heard."""
    give_up_at = clock.now() + HEARD_WITHIN_S
    while clock.now() < give_up_at:
        worker = _find(gateway, worker_id)
        if worker is None:
            raise ConfigError(f"{worker_id} has left meanwhile")
        if worker["role_pinned"] == (wanted != "auto") and wanted in ("auto", worker["role"]):
            return str(worker["role"])
        time.sleep(LOOK_EVERY_S)
    raise ConfigError(f"{worker_id} did not take its role within {HEARD_WITHIN_S:g} s")


def _find(gateway: Gateway, worker_id: str) -> dict[str, Any] | None:
    """None once it has left, or is lost."""
    for worker in gateway.ask("/mesh")["workers"]:
        if worker["id"] == worker_id and worker["state"] != "lost":
            return dict(worker)
    return None


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
