"""Traces made to order: arrivals of a known kind, lengths as asked.

Arrivals are renewals with gamma gaps, in operational time where the rate changes. The whole schedule is rescaled so
that the last of N requests is due exactly when N are expected: the mean rate is as asked, not merely on average, as
in `vllm bench serve`. Of rate, number and span two may be given; the third follows. Times are kept to a microsecond.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loadgen.traces.draws import gamma_gaps, generator, thinking_times
from loadgen.traces.trace import Request, Trace
from loadgen.traces.wanted import MOST_REQUESTS, OPTIONS, Wanted
from shared.errors import ConfigError

RATE_RPS = 1.0
PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 128
BURST_SHAPE = 1 / 36  # coefficient of variation 6
STEP_RATES = (1.0, 3.0, 1.0)
RAMP_GROWTH, RAMP_STAGE_S = 1.1, 30.0
MOST_STAGES = 400  # 1.1 to this power is more requests than any trace may have
USERS, REQUESTS_PER_USER, USERS_APART_S = 8, 20, 0.002
TURNS, THINK_S = 4, 5.0
SHARED_TOKENS = 512

Stages = list[tuple[float, float]]  # seconds, and the rate as a multiple of the rate asked for


def generate(name: str, *, seed: int, wanted: Wanted) -> Trace:
    """Raises ConfigError for an option that the preset has no use for."""
    preset = PRESETS[name]
    for field in OPTIONS:
        if field in wanted.given() - preset.takes:
            raise ConfigError(f"{name} takes no {OPTIONS[field][0]}; it takes {options_of(preset.takes)}")
    return preset.make(name, seed, wanted)


def options_of(fields: frozenset[str]) -> str:
    return ", ".join(option for field, (option, *_) in OPTIONS.items() if field in fields)


def _steady(span_s: float) -> Stages:
    return [(span_s, 1.0)]


def _step(span_s: float) -> Stages:
    return [(span_s / len(STEP_RATES), rate) for rate in STEP_RATES]


def _ramp(span_s: float) -> Stages:
    stages: Stages = []
    left_s, rate = span_s, 1.0
    while left_s > 0 and len(stages) < MOST_STAGES:
        stages.append((min(RAMP_STAGE_S, left_s), rate))
        left_s, rate = left_s - RAMP_STAGE_S, rate * RAMP_GROWTH
    return stages


def _expected(stages: Stages) -> float:
    """Requests per unit of the rate asked for."""
    return sum(duration_s * rate for duration_s, rate in stages)


def _open(span_s: float, shape: float, profile: Callable[[float], Stages]) -> Callable[[str, int, Wanted], Trace]:
    """Requests that each come at their own time."""

    def make(name: str, seed: int, wanted: Wanted) -> Trace:
        due_s, note = _arrivals(wanted, seed, span_s=span_s, shape=shape, profile=profile)
        prompt_tokens, output_tokens = _lengths(wanted)
        requests = (Request(at_s=at, prompt_tokens=prompt_tokens, output_tokens=output_tokens) for at in due_s)
        return Trace(name=name, requests=tuple(requests), notes=(f"{name}: {note}",))

    return make


def _shared_prefix(name: str, seed: int, wanted: Wanted) -> Trace:
    """Every prompt begins with the same system prompt; --random-input-len is what follows it."""
    due_s, note = _arrivals(wanted, seed, span_s=300.0)
    own_tokens, output_tokens = _lengths(wanted)
    shared_tokens = wanted.shared_tokens or SHARED_TOKENS
    requests = (
        Request(
            at_s=at_s,
            prompt_tokens=shared_tokens + own_tokens,
            output_tokens=output_tokens,
            blocks=(0,),
            block_tokens=shared_tokens,
        )
        for at_s in due_s
    )
    return Trace(
        name=name, requests=tuple(requests), notes=(f"{name}: {note}; all begin with the same {shared_tokens} tokens",)
    )


def _sessions(name: str, seed: int, wanted: Wanted) -> Trace:
    """Users come at --request-rate; each asks --turns times and carries on what was said. --random-input-len is the
    length of one question."""
    turns = wanted.turns or TURNS
    start_s, note = _arrivals(wanted, seed, span_s=300.0, requests_each=turns)
    question_tokens, output_tokens = _lengths(wanted)
    thinks_s = _thinks(wanted, seed, len(start_s) * turns, THINK_S)
    requests: list[Request] = []
    for start in start_s:
        for turn in range(turns):
            requests.append(
                Request(
                    at_s=start,
                    prompt_tokens=turn * (question_tokens + output_tokens) + question_tokens,
                    output_tokens=output_tokens,
                    after=len(requests) - 1 if turn else None,
                    think_s=thinks_s[len(requests)] if turn else 0.0,
                    carries=turn > 0,
                )
            )
    note = f"{name}: of {turns} turns each; {note}"
    return Trace(name=name, requests=tuple(requests[: wanted.requests]), notes=(note,))


def _closed(name: str, seed: int, wanted: Wanted) -> Trace:
    """--max-concurrency users, each asking again when it was answered. With --request-rate requests also wait for their
    time in a Poisson schedule, as in `vllm bench serve`; without it users come so far apart that sending keeps up."""
    users = wanted.users or USERS
    if wanted.rate_rps is None:
        if wanted.span_s is not None:
            raise ConfigError(f"{name}: how many requests --span holds is up to the server; give --num-prompts")
        if wanted.burstiness is not None:
            raise ConfigError(f"{name}: --burstiness is that of --request-rate, which is not given")
        count = wanted.requests or users * REQUESTS_PER_USER
        due_s, note = [min(number, users - 1) * USERS_APART_S for number in range(count)], f"seed {seed}"
    else:
        due_s, note = _arrivals(wanted, seed, span_s=300.0)
    prompt_tokens, output_tokens = _lengths(wanted)
    thinks_s = _thinks(wanted, seed, len(due_s), 0.0)
    requests = (
        Request(
            at_s=at_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            after=number - users if number >= users else None,
            think_s=thinks_s[number] if number >= users else 0.0,
        )
        for number, at_s in enumerate(due_s)
    )
    return Trace(name=name, requests=tuple(requests), notes=(f"{name}: {users} users, {note}",))


def _arrivals(
    wanted: Wanted,
    seed: int,
    *,
    span_s: float,
    shape: float = 1.0,
    profile: Callable[[float], Stages] = _steady,
    requests_each: int = 1,
) -> tuple[list[float], str]:
    """When requests come (or sessions of `requests_each`), and a note that says so."""
    rate_rps, count, stages = _settle(wanted, span_s, profile, requests_each)
    shape = wanted.burstiness or shape
    operational = np.cumsum(gamma_gaps(generator(seed), shape, count))
    scaled = operational * (1.0 / operational[-1]) if operational[-1] > 0 else np.ones(count)
    durations_s, rates = np.array(stages).T
    ends = np.concatenate([[0.0], np.cumsum(durations_s * rates)])
    due_s = np.interp(scaled * ends[-1], ends, np.concatenate([[0.0], np.cumsum(durations_s)]))
    what = f"{count:,} arrivals in {durations_s.sum():,.6g} s from {rate_rps:.6g} a second"
    kind = "Poisson" if shape == 1.0 else f"gamma gaps of shape {shape:.3g}"
    return np.round(due_s, 6).tolist(), f"{what}, {kind}, seed {seed}"


def _settle(
    wanted: Wanted, span_s: float, profile: Callable[[float], Stages], requests_each: int
) -> tuple[float, int, Stages]:
    """Rate, count and stages of the rate, from two of rate, number and span, or from one and the preset's own."""
    if None not in (wanted.rate_rps, wanted.requests, wanted.span_s):
        raise ConfigError("give two of --request-rate, --num-prompts and --span, not all three")
    count = None if wanted.requests is None else -(-wanted.requests // requests_each)
    if count is not None and wanted.span_s is not None:
        stages = profile(wanted.span_s)
        return count / _expected(stages), count, stages
    rate_rps = wanted.rate_rps or RATE_RPS
    if count is not None:
        return rate_rps, count, profile(_span_for(count / rate_rps, profile))
    expected = rate_rps * _expected(profile(wanted.span_s or span_s))
    if expected > MOST_REQUESTS:
        raise ConfigError(f"that makes {expected:.3g} requests, the most is {MOST_REQUESTS:,}; lower rate or span")
    count = max(1, round(expected))
    return rate_rps, count, profile(_span_for(count / rate_rps, profile))


def _span_for(expected: float, profile: Callable[[float], Stages]) -> float:
    """The span whose stages hold so many requests per unit of rate; found by halving, as it grows with the span."""
    low_s, high_s = 0.0, expected  # no stage is slower than the rate asked for
    for _ in range(80):
        middle_s = (low_s + high_s) / 2
        if _expected(profile(middle_s)) < expected:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s


def _lengths(wanted: Wanted) -> tuple[int, int]:
    return wanted.prompt_tokens or PROMPT_TOKENS, wanted.output_tokens or OUTPUT_TOKENS


def _thinks(wanted: Wanted, seed: int, count: int, default_s: float) -> list[float]:
    """From a stream of their own, so that arrivals do not depend on them."""
    mean_s = default_s if wanted.think_s is None else wanted.think_s
    return thinking_times(generator(seed, 1), count, mean_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`takes`: the fields of Wanted that it heeds."""

    about: str
    make: Callable[[str, int, Wanted], Trace]
    takes: frozenset[str]


_SCHEDULE = frozenset({"rate_rps", "burstiness", "requests", "span_s", "prompt_tokens", "output_tokens"})
PRESETS = {
    "poisson": Preset(about="independent arrivals, 5 minutes", make=_open(300.0, 1.0, _steady), takes=_SCHEDULE),
    "burst": Preset(
        about="bursts: gaps with a coefficient of variation of 6",
        make=_open(300.0, BURST_SHAPE, _steady),
        takes=_SCHEDULE,
    ),
    "step": Preset(
        about="the rate, three times it, and the rate again", make=_open(180.0, 1.0, _step), takes=_SCHEDULE
    ),
    "ramp": Preset(about="10 % more every 30 s, for 10 minutes", make=_open(600.0, 1.0, _ramp), takes=_SCHEDULE),
    "soak": Preset(about="independent arrivals, 30 minutes", make=_open(1800.0, 1.0, _steady), takes=_SCHEDULE),
    "closed": Preset(about="users who ask again when answered", make=_closed, takes=_SCHEDULE | {"users", "think_s"}),
    "sessions": Preset(
        about="users who carry on a chat over several turns", make=_sessions, takes=_SCHEDULE | {"turns", "think_s"}
    ),
    "shared-prefix": Preset(
        about="independent arrivals with one system prompt", make=_shared_prefix, takes=_SCHEDULE | {"shared_tokens"}
    ),
}
