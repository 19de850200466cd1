"""Service levels: what a request must keep to be good, and what share of the requests did.

The share is taken of all scheduled requests due in the window: a request that failed, was rejected or was never sent is
a miss. Otherwise a server would do better by serving less.
"""

import math
from dataclasses import dataclass

import numpy as np

from loadgen.measure.latencies import BoolArray, Measured
from loadgen.measure.splitwise import LIMITS, IdleSpeed, slow_downs
from loadgen.measure.stats import share
from shared.errors import ConfigError

ALIASES = {"tpot": "tbt"}
COLUMNS = {
    "ttft": "ttft_s",
    "tbt": "tpot_s",  # the mean time between tokens of the request
    "tbt_p99": "gap_p99_s",  # the P99 of the request's own gaps
    "e2e": "e2e_s",
    "second": "second_token_s",
    "max_gap": "max_gap_s",
}
SPLITWISE = "splitwise"
SLO_HELP = "e.g. ttft=3,tbt=0.15 in seconds (also tbt_p99, e2e, second, max_gap), or splitwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """`text`: as given. `limits`: key of COLUMNS and seconds. `splitwise`: the slow-downs of that paper as well."""

    text: str
    limits: tuple[tuple[str, float], ...] = ()
    splitwise: bool = False

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """`ttft=3,tbt=0.15` (seconds), `splitwise`, or both. Raises ConfigError."""
        limits: dict[str, float] = {}
        splitwise = False
        for item in text.split(","):
            key, equals, figure = (part.strip() for part in item.partition("="))
            if key == SPLITWISE and not equals:
                splitwise = True
                continue
            key = ALIASES.get(key, key)
            if key not in COLUMNS:
                raise ConfigError(f"slo: unknown key {key!r} in {text!r}; keys are {_keys()}")
            if key in limits:
                raise ConfigError(f"slo: {key} is given twice in {text!r}")
            limits[key] = _seconds(key, figure)
        return cls(text=text, limits=tuple(limits.items()), splitwise=splitwise)


def _keys() -> str:
    return f"{', '.join(COLUMNS)} (in seconds, as ttft=3), tpot (means tbt), and {SPLITWISE} alone"


def _seconds(key: str, figure: str) -> float:
    try:
        value = float(figure)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"slo: {key} needs seconds above 0, not {figure!r}; keys are {_keys()}")
    return value


def judge(table: Measured, slo: Slo, idle: IdleSpeed | None = None) -> dict[str, BoolArray]:
    """For each key, which of the counted requests completed and met it; a limit itself is met. A request whose answer
    has no such time (one token has no time between tokens) meets the key, one without any token misses all."""
    answered = table.counted & table.completed & (table.tokens >= 1)
    each: dict[str, BoolArray] = {}
    for key, limit_s in slo.limits:
        value_s = getattr(table, COLUMNS[key])
        each[key] = answered & ((value_s <= limit_s) | (np.isnan(value_s) & (key not in ("ttft", "e2e"))))
    if slo.splitwise:
        if idle is None:
            raise ConfigError(f"slo: {SPLITWISE} needs the idle speed of the system")
        for key, slow in slow_downs(table, idle).items():
            each[f"{key}_slow_down"] = answered & ((slow <= LIMITS[key][-1]) | (np.isnan(slow) & (key == "tbt")))
    return each


def good(each: dict[str, BoolArray]) -> BoolArray:
    met: BoolArray = np.all(list(each.values()), axis=0)
    return met


def attainment(met: BoolArray, table: Measured) -> float | None:
    """None when no request was due in the window."""
    return share(int(met.sum()), int(table.counted.sum()))
