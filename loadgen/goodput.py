"""The highest rate at which the SLO is still met by 90 % and by 99 % of the requests (DistServe's goodput).

Each try replays the same trace with its time compressed or stretched, so the pattern of arrivals stays.
"""

from collections.abc import Callable
from typing import Any

from loadgen.measure.search import RateSearch
from loadgen.traces.scale import scale_rate
from loadgen.traces.trace import Trace
from shared.errors import ConfigError

TARGETS = (0.9, 0.99)
MOST_TRIES = 12  # for all targets

Measure = Callable[[Trace], dict[str, Any]]  # one replay; its result


def find_goodput(trace: Trace, first: dict[str, Any], measure: Measure, say: Callable[[str], None]) -> dict[str, Any]:
    """{"tries": [{"rate_rps", "attainment", "valid"}], "best": {"0.9": rps or None, "0.99": ...}}. `first` is the
    result of the trace as it is. Raises ConfigError for a trace without a rate."""
    if not trace.open_loop or trace.span_s <= 0:
        raise ConfigError("--find-goodput needs a trace with arrivals of its own: users who wait have no rate")
    base_rps = len(trace.requests) / trace.span_s
    tries = [(base_rps, first)]
    best: dict[str, float | None] = {}
    for target in TARGETS:
        search = RateSearch(start_rps=base_rps, target=target, most_tries=MOST_TRIES)
        for tried_rps, result in tries:
            search.observe(tried_rps, result["attainment"], result["valid"])
        while (next_rps := search.next_rate()) is not None:
            say(f"try {len(tries) + 1}: {next_rps:.3g} requests/s for an attainment of {target:.0%}")
            result = measure(scale_rate(trace, next_rps / base_rps))
            tries.append((next_rps, result))
            search.observe(next_rps, result["attainment"], result["valid"])
        best[f"{target:g}"] = search.best
    shown = [
        {"rate_rps": rate_rps, "attainment": result["attainment"], "valid": result["valid"]}
        for rate_rps, result in sorted(tries, key=lambda one: one[0])
    ]
    return {"tries": shown, "best": best}
