"""What reports call each measure, in which unit they show it, and which direction is better.

The keys are those of a run's result. A result's times are seconds; tables of the terminal show milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
Interval = tuple[float, float]

STATISTICS = (("mean", "Mean"), ("p50", "Median"), ("p90", "P90"), ("p99", "P99"), ("max", "Max"))
ENOUGH_FOR_P99 = 1000  # samples: below, a P99 rests on fewer than ten of them
MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One kind of latency. `meaning` completes the sentence "<short> is ..."."""

    key: str
    short: str
    title: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A measure of which more is better."""

    key: str
    title: str
    unit: str
    meaning: str


LATENCIES = (
    Latency(
        key="ttft_s",
        short="TTFT",
        title="Time to First Token",
        meaning="the time from when a request was due, not from when it was sent, to its first event with tokens",
    ),
    Latency(
        key="tpot_s",
        short="TPOT",
        title="Time per Output Token (excl. 1st token)",
        meaning="the time from the first to the last token over the number of tokens after the first: one value per "
        "request that has at least two tokens",
    ),
    Latency(
        key="itl_s",
        short="ITL",
        title="Inter-token Latency",
        meaning="the gap between one event with tokens and the next, gaps of all requests pooled",
    ),
    Latency(
        key="second_token_s",
        short="second token",
        title="Second Token",
        meaning="the first gap of a request: with prefill and decode on separate workers it holds the transfer of the "
        "KV cache",
    ),
    Latency(
        key="max_gap_s", short="largest gap", title="Largest Gap", meaning="the longest pause that a request's user saw"
    ),
    Latency(
        key="e2e_s",
        short="E2EL",
        title="End-to-end Latency",
        meaning="the time from when a request was due to the end of its answer",
    ),
)

RATES = (
    Rate(
        key="attainment",
        title="SLO attainment",
        unit="%",
        meaning="the share of all scheduled requests that met every limit; failed and rejected ones count as misses",
    ),
    Rate(
        key="goodput_rps",
        title="Goodput",
        unit="req/s",
        meaning="requests per second that met every limit",
    ),
    Rate(
        key="good_output_tokens_per_s",
        title="Good output tokens",
        unit="tok/s",
        meaning="output tokens per second of requests that met every limit",
    ),
    Rate(
        key="requests_per_s",
        title="Request throughput",
        unit="req/s",
        meaning="requests per second that completed in the window",
    ),
    Rate(
        key="output_tokens_per_s",
        title="Output token throughput",
        unit="tok/s",
        meaning="tokens that arrived in the window over its length",
    ),
    Rate(
        key="input_tokens_per_s",
        title="Input token throughput",
        unit="tok/s",
        meaning="prompt tokens of requests whose first token arrived in the window over its length",
    ),
)

_LATENCY_OF = {latency.key: latency for latency in LATENCIES}
_RATE_OF = {rate.key: rate for rate in RATES}
_STATISTIC_OF = dict(STATISTICS) | {"p50": "median"}


def compared_keys() -> list[str]:
    """The rows of a comparison that names none itself."""
    latencies = [f"{latency.key}.{statistic}" for latency in LATENCIES for statistic in ("p50", "p90", "p99")]
    return latencies + [rate.key for rate in RATES]


def value_at(result: Result, key: str) -> float | None:
    """`ttft_s.p50` or `goodput_rps` of a result; None where it has none."""
    name, _, statistic = key.partition(".")
    found = result.get(name)
    if statistic:
        found = found.get(statistic) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def title_of(key: str) -> str:
    """`TTFT median (ms)` for `ttft_s.p50`. A key that nobody here knows is its own title."""
    name, _, statistic = key.partition(".")
    if name in _LATENCY_OF and statistic:
        return f"{_LATENCY_OF[name].short} {_STATISTIC_OF.get(statistic, statistic)} (ms)".replace("Mean", "mean")
    return f"{_RATE_OF[name].title} ({_RATE_OF[name].unit})" if name in _RATE_OF else key


def shown(key: str, value: float | None) -> str:
    """The value in the unit that `title_of` names."""
    if value is None:
        return MISSING
    name = key.partition(".")[0]
    if name in _LATENCY_OF:
        return f"{value * 1e3:,.2f}"
    return f"{value * 100:.1f}" if name == "attainment" else f"{value:,.2f}"


def lower_is_better(key: str) -> bool | None:
    """None: nobody here knows."""
    name = key.partition(".")[0]
    if name in _LATENCY_OF or name == "ttft_from_send_s":
        return True
    return False if name in _RATE_OF else None


def verdict(key: str, ratio: Mapping[str, Any]) -> str:
    """`better`, `worse`, `same` (not significant), `different` (in a measure without a sense), `unknown`."""
    value, significant = ratio["ratio"], ratio["significant"]
    if value is None or significant is None:
        return "unknown"
    if not significant:
        return "same"
    lower = lower_is_better(key)
    if lower is None:
        return "different"
    return "better" if (value < 1) == lower else "worse"


def ratio_text(key: str, ratio: Mapping[str, Any]) -> str:
    """`0.82× [0.75, 0.90] better`: times the baseline, with the 95 % interval, in words."""
    value, low, high = ratio["ratio"], ratio["low"], ratio["high"]
    if value is None:
        return MISSING
    between = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    said = {"same": "not significant", "different": "", "unknown": "(interval unknown)"}
    found = verdict(key, ratio)
    return f"{value:.2f}×{between} {said.get(found, found)}".rstrip()


def attainment_interval(result: Result) -> Interval | None:
    """95 %: of the share of requests that met every limit."""
    found = ((result.get("confidence") or {}).get("attainment") or {}).get("value")
    return None if found is None else (found[0], found[1])


def splitwise_value(cell: Mapping[str, Any]) -> str:
    """A slowdown; requests that did not complete are infinitely slow, which JSON cannot say."""
    if cell["value"] is None:
        return MISSING if cell["met"] else "∞"
    return f"{cell['value']:.3g}"


def splitwise_rows(splitwise: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{"ttft": {"p50": {"value", "limit", "met"}, ...}, ...}: what stands beside `met` in that table."""
    return {name: cells for name, cells in splitwise.items() if isinstance(cells, Mapping)}


def time_text(seconds: float | None) -> str:
    """`8.4 ms`, `123 ms`, `1.23 s`: three digits and a unit."""
    if seconds is None:
        return MISSING
    if seconds < 0.9995:
        milliseconds = seconds * 1e3
        return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def percent_text(share: float | None) -> str:
    return MISSING if share is None else f"{share * 100:.1f} %"


def rate_text(value: float | None) -> str:
    """`0.42`, `5.3`, `1,168`: what three digits can say."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
