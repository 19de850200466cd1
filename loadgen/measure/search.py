"""The highest rate that a system serves well: attainment at or above a target (0.9 as DistServe, or 0.99).

It only decides which rate to try next; somebody else runs it. Rates double or halve until one that holds and one that
does not are known, then the gap between them is bisected. All tries are kept: together they are attainment over rate.
"""

import math
from dataclasses import dataclass

from shared.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """`attainment` is None when nothing was due; a run that is not `valid` shows nothing of the system."""

    rate_rps: float
    attainment: float | None
    valid: bool


class RateSearch:
    """Ask `next_rate`, run it, tell `observe`, until there is no next. A try that is invalid did not show that the rate
    holds, so the search goes on below it; `bounded_by_invalid` then says that the system may be better than `best`."""

    def __init__(self, *, start_rps: float, target: float = 0.9, tolerance: float = 0.05, most_tries: int = 12) -> None:
        _require(0 < start_rps < math.inf, "start rate", "above 0 requests/s", start_rps)
        _require(0 < target <= 1, "target", "above 0 and at most 1", target)
        _require(0 < tolerance < math.inf, "tolerance", "above 0", tolerance)
        _require(most_tries >= 1, "tries", "at least 1", most_tries)
        self._start_rps = start_rps
        self._target = target
        self._tolerance = tolerance
        self._most_tries = most_tries
        self.tries: list[Try] = []

    def next_rate(self) -> float | None:
        if len(self.tries) >= self._most_tries or self.settled:
            return None
        best_rps, lowest_bad_rps = self.best, self._lowest_bad_rps()
        if lowest_bad_rps is None:
            return self._start_rps if best_rps is None else 2 * best_rps
        return lowest_bad_rps / 2 if best_rps is None else math.sqrt(best_rps * lowest_bad_rps)

    def observe(self, rate_rps: float, attainment: float | None, valid: bool) -> None:
        _require(0 < rate_rps < math.inf, "rate", "above 0 requests/s", rate_rps)
        self.tries.append(Try(rate_rps=rate_rps, attainment=attainment, valid=valid))

    @property
    def best(self) -> float | None:
        """The highest rate that held, below every one that did not; with noise a rate may hold above one that did not,
        and that is not believed."""
        bad_rps = self._lowest_bad_rps()
        held = (t.rate_rps for t in self.tries if self._holds(t))
        return max((rate for rate in held if bad_rps is None or rate < bad_rps), default=None)

    @property
    def settled(self) -> bool:
        """`best` is known to the tolerance."""
        best_rps, bad_rps = self.best, self._lowest_bad_rps()
        return best_rps is not None and bad_rps is not None and bad_rps <= best_rps * (1 + self._tolerance)

    @property
    def bounded_by_invalid(self) -> bool:
        bad_rps = self._lowest_bad_rps()
        closing = [t for t in self.tries if t.rate_rps == bad_rps and not self._holds(t)]
        return bool(closing) and not any(self._shown(t) for t in closing)

    def check(self) -> None:
        best_rps, bad_rps = self.best, self._lowest_bad_rps()
        assert len(self.tries) <= self._most_tries, f"{len(self.tries)} tries, {self._most_tries} allowed"
        assert best_rps is None or bad_rps is None or best_rps < bad_rps, f"best {best_rps} above bad {bad_rps}"

    def _shown(self, one: Try) -> bool:
        return one.valid and one.attainment is not None

    def _holds(self, one: Try) -> bool:
        return one.valid and one.attainment is not None and one.attainment >= self._target

    def _lowest_bad_rps(self) -> float | None:
        return min((t.rate_rps for t in self.tries if not self._holds(t)), default=None)


def _require(holds: bool, name: str, limit: str, value: float) -> None:
    if not holds:
        raise ConfigError(f"rate search: {name} must be {limit}, is {value:g}")
