"""What may be asked of a preset or a generator, and the options of the command line that all commands share.

Names follow `vllm bench serve` where it has one. None means: as the preset has it.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.runtime.options import typed
from shared.runtime.parsers import whole_number

MOST_TOKENS = 10_000_000
MOST_REQUESTS = 100_000_000
FORMATS = ("azure", "mooncake", "burstgpt", "sharegpt", "jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Times are seconds, lengths are tokens."""

    rate_rps: float | None = None
    burstiness: float | None = None  # shape of the gamma distribution of gaps
    requests: int | None = None
    span_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    users: int | None = None
    turns: int | None = None
    think_s: float | None = None
    shared_tokens: int | None = None

    def given(self) -> set[str]:
        return {field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None}


def above_zero(text: str) -> float:
    value = _number(text)
    if not value > 0.0:
        raise ValueError("give a number above 0")
    return value


def _finite(text: str) -> float:
    value = above_zero(text)
    if math.isinf(value):
        raise ValueError("give a finite number above 0")
    return value


def at_least_zero(text: str) -> float:
    value = _number(text)
    if not 0.0 <= value < math.inf:
        raise ValueError("give a number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# Field of Wanted -> option, metavar, parser, help.
OPTIONS: dict[str, tuple[str, str, Callable[[str], Any], str]] = {
    "rate_rps": ("--request-rate", "R", _finite, "requests a second (sessions: new sessions a second)"),
    "burstiness": ("--burstiness", "K", above_zero, "1 is Poisson, below 1 is burstier, inf is even"),
    "requests": ("--num-prompts", "N", whole_number(1, MOST_REQUESTS), "number of requests"),
    "span_s": ("--span", "SECONDS", _finite, "how long requests arrive"),
    "prompt_tokens": ("--random-input-len", "TOKENS", whole_number(1, MOST_TOKENS), "length of each prompt"),
    "output_tokens": ("--random-output-len", "TOKENS", whole_number(1, MOST_TOKENS), "length of each answer"),
    "users": ("--max-concurrency", "N", whole_number(1, MOST_REQUESTS), "users of the closed loop"),
    "turns": ("--turns", "N", whole_number(1, 10_000), "requests of one session"),
    "think_s": ("--think-time", "SECONDS", at_least_zero, "mean time between an answer and the user's next request"),
    "shared_tokens": ("--shared-prefix-len", "TOKENS", whole_number(1, MOST_TOKENS), "length of the shared prompt"),
}


def add_arguments(parser: argparse.ArgumentParser, *, positional: bool = False, required: bool = True) -> None:
    """The options of every command that takes a trace; `positional`: the trace itself is no option."""
    if positional:
        parser.add_argument("trace", metavar="FILE|NAME", help="a trace file, or a name (see trace list)")
    else:
        parser.add_argument("--trace", metavar="FILE|NAME", required=required, help="a trace file, or a name")
    parser.add_argument("--format", choices=FORMATS, help="of the file; found out when not given")
    parser.add_argument("--rate-scale", metavar="R", type=typed(_finite), help="2: twice the rate")
    parser.add_argument("--length-scale", metavar="L", type=typed(_finite), help="0.1: a tenth as long")
    parser.add_argument("--limit", metavar="N", type=typed(whole_number(1)), help="take the first N requests only")
    parser.add_argument("--seed", metavar="S", type=typed(whole_number(0)), default=0, help="of everything random")
    group = parser.add_argument_group("options of the presets and generators")
    for field, (option, metavar, parse, text) in OPTIONS.items():
        group.add_argument(option, dest=field, metavar=metavar, type=typed(parse), help=text)


def wanted(namespace: argparse.Namespace) -> Wanted:
    return Wanted(**{field: getattr(namespace, field) for field in OPTIONS})
