"""The highest rate at which the SLO is still met by 90 % and by 99 % of the requests (DistServe's goodput).

Each try replays the same trace with its time compressed or stretched, so the pattern of arrivals stays.
"""

from collections.abc import Callable

from loadgen.measure.result import Result
from loadgen.measure.search import RateSearch
from loadgen.traces.scale import limit, scale_rate
from loadgen.traces.trace import Trace
from shared.errors import ConfigError

TARGETS = (0.9, 0.99)
MOST_TRIES = 12  # for all targets
SLOWEST = 1 / 16  # of the given rate: below that the SLO is not a matter of load
MOST_INVALID = 2


def check(trace: Trace) -> None:
    """Raises ConfigError for a trace without a rate."""
    if not trace.open_loop or trace.span_s <= 0:
        raise ConfigError("--find-goodput needs a trace with arrivals of its own: users who wait have no rate")


def find_goodput(trace: Trace, first: Result, measure: Callable[[Trace], Result], say: Callable[[str], None]) -> Result:
    """{"tries": [{"rate_rps", "attainment", "valid"}], "best": {"0.9": rps or None, "0.99": ...}, "notes"}. `first` is
    the result of the trace as it is; `measure` replays another and raises KeyboardInterrupt when it was interrupted."""
    base_rps = len(trace.requests) / trace.span_s
    tries = [(base_rps, first)]
    best: dict[str, float | None] = {}
    notes: list[str] = []
    for target in TARGETS:
        search = RateSearch(start_rps=base_rps, target=target, most_tries=MOST_TRIES)
        for tried_rps, result in tries:
            search.observe(tried_rps, result["attainment"], result["valid"])
        while (next_rps := search.next_rate()) is not None and next_rps >= SLOWEST * base_rps:
            if sum(not result["valid"] for _, result in tries) >= MOST_INVALID:
                notes.append("ended early: runs were invalid")
                break
            say(f"try {len(tries) + 1}: {next_rps:.3g} requests/s for an attainment of {target:.0%}")
            result = measure(_as_long(scale_rate(trace, next_rps / base_rps), trace.span_s))
            tries.append((next_rps, result))
            search.observe(next_rps, result["attainment"], result["valid"])
        best[f"{target:g}"] = search.best
        if search.bounded_by_invalid:
            notes.append(f"the rate for {target:.0%} is bounded by runs that were invalid, not by the server")
    shown = [
        {"rate_rps": rate_rps, "attainment": result["attainment"], "valid": result["valid"]}
        for rate_rps, result in sorted(tries, key=lambda one: one[0])
    ]
    return {"tries": shown, "best": best, "notes": list(dict.fromkeys(notes))}


def _as_long(trace: Trace, span_s: float) -> Trace:
    """Not longer than the trace that it was made of: a slower one has fewer requests instead."""
    return limit(trace, max(1, sum(request.at_s <= span_s for request in trace.requests)))
