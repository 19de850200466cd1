"""The options that say how a server is asked; those of what is sent and when are with the traces. Named as in
`vllm bench serve` where it has one."""

import argparse
import json
import os
from typing import Any

from loadgen.client.fleet import Settings
from loadgen.client.server import COMPLETIONS
from loadgen.traces.wanted import at_least_zero
from shared.errors import ConfigError
from shared.runtime.options import typed
from shared.runtime.parsers import seconds, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is sent")
    group.add_argument("--model", help="name of the model (default: the first that the server lists)")
    group.add_argument("--endpoint", default=COMPLETIONS, help="path below the base URL (default: %(default)s)")
    group.add_argument(
        "--api-key", default=os.environ.get("OPENAI_API_KEY"), help="bearer token (default: $OPENAI_API_KEY)"
    )
    group.add_argument("--header", action="append", default=[], metavar="KEY=VALUE", help="HTTP header; repeatable")
    group.add_argument("--extra-body", metavar="JSON", help="an object of fields that every request gets on top")
    group.add_argument(
        "--num-warmups", type=typed(whole_number(0)), default=2, metavar="N", help="requests before (default: 2)"
    )
    group.add_argument(
        "--warmup",
        type=typed(at_least_zero),
        default=0.0,
        metavar="S",
        help="what is due in the first S seconds is not measured",
    )
    group.add_argument(
        "--deadline", type=typed(seconds), default=600.0, metavar="S", help="of a request, from its due time (600)"
    )
    group.add_argument(
        "--drain",
        type=typed(at_least_zero),
        default=600.0,
        metavar="S",
        help="how long to wait after the last was sent (600)",
    )
    group.add_argument(
        "--client-processes", type=typed(whole_number(1)), metavar="N", help="default: as many as the tokens need"
    )
    group.add_argument(
        "--count-tolerance", type=typed(share), default=0.0, metavar="X",
        help="share of requests whose token counts may differ from usage before the run is invalid (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--ready-check-timeout-sec",
        type=typed(at_least_zero),
        default=0.0,
        metavar="S",
        help="wait so long for the server to come",
    )


def settings(given: argparse.Namespace, *, stop_when_saturated: bool = False) -> Settings:
    return Settings(
        seed=given.seed, deadline_s=given.deadline, drain_s=given.drain, warmup_s=given.warmup,
        processes=given.client_processes, stop_when_saturated=stop_when_saturated,
    )  # fmt: skip


def headers(given: argparse.Namespace) -> dict[str, str]:
    found = {"Authorization": f"Bearer {given.api_key}"} if given.api_key else {}
    for text in given.header:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--header {text!r}: expected KEY=VALUE", param="header")
        found[name] = value
    return found


def extra_body(given: argparse.Namespace) -> dict[str, Any]:
    if given.extra_body is None:
        return {}
    try:
        body = json.loads(given.extra_body)
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}", param="extra_body") from error
    if not isinstance(body, dict):
        raise ConfigError("--extra-body must be a JSON object", param="extra_body")
    return body


def share(text: str) -> float:
    value = at_least_zero(text)
    if value > 1:
        raise ValueError("give a share from 0 to 1")
    return value
