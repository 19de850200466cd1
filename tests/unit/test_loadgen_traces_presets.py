"""Presets: seeded, at the rate that was asked for, and of the kind that they are named after."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from loadgen.traces.draws import gamma_gaps, generator
from loadgen.traces.load import NAMES, load
from loadgen.traces.presets import PRESETS
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import Wanted
from loadgen.traces.windows import counts
from shared.errors import ConfigError


def times(trace: Trace) -> NDArray[np.float64]:
    return np.array([r.at_s for r in trace.requests])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_follows_the_rules_and_its_seed(name: str) -> None:
    trace = load(name, seed=3)
    trace.check()
    assert trace.name == name
    assert "seed 3" in trace.notes[0]
    assert load(name, seed=3) == trace
    if name != "closed":  # nothing is left to chance in it
        assert load(name, seed=4).sha256 != trace.sha256


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_heeds_number_and_lengths(name: str) -> None:
    trace = load(name, options=Wanted(requests=90, prompt_tokens=7, output_tokens=3, rate_rps=4.0))
    trace.check()
    assert len(trace.requests) == 90
    assert {r.output_tokens for r in trace.requests} == {3}
    assert min(r.prompt_tokens - len(r.blocks) * r.block_tokens for r in trace.requests) == 7


@pytest.mark.parametrize("name", ["poisson", "burst", "soak", "shared-prefix"])
@pytest.mark.parametrize(
    ("wanted", "count", "span_s"),
    [
        (Wanted(rate_rps=2.5, requests=100), 100, 40.0),
        (Wanted(rate_rps=2.5, span_s=60.0), 150, 60.0),
        (Wanted(requests=100, span_s=25.0), 100, 25.0),
    ],
)
def test_the_mean_rate_is_exactly_as_asked(name: str, wanted: Wanted, count: int, span_s: float) -> None:
    for seed in range(3):
        trace = load(name, seed=seed, options=wanted)
        assert len(trace.requests) == count
        assert trace.span_s == pytest.approx(span_s, abs=2e-6)


def test_poisson_gaps_are_exponential_and_bursts_have_a_cv_of_6() -> None:
    for name, cv in (("poisson", 1.0), ("burst", 6.0)):
        gaps_s = np.diff(times(load(name, options=Wanted(requests=20_000))))
        assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.12)
    even = np.diff(times(load("poisson", options=Wanted(requests=50, burstiness=math.inf))))
    assert even == pytest.approx(np.ones(49))


@pytest.mark.parametrize("shape", [0.028, 0.5, 1.0, 2.5, 30.0])
def test_gamma_gaps_have_mean_one_and_the_variance_of_their_shape(shape: float) -> None:
    gaps = gamma_gaps(generator(1), shape, 200_000)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1.0, rel=0.05)
    assert gaps.var() == pytest.approx(1 / shape, rel=0.08)
    third = ((gaps - gaps.mean()) ** 3).mean() / gaps.std() ** 3
    assert third == pytest.approx(2 / math.sqrt(shape), rel=0.2)


def test_step_is_three_times_as_fast_in_the_middle() -> None:
    trace = load("step", options=Wanted(rate_rps=20.0, span_s=180.0))
    low, high, again = counts(np.append(times(trace), 180.0), 60.0)
    assert len(trace.requests) == 20 * 60 * 5
    assert low == pytest.approx(1200, rel=0.12) and again == pytest.approx(1200, rel=0.12)
    assert high == pytest.approx(3600, rel=0.07)


def test_ramp_grows_by_a_tenth_every_30_s() -> None:
    trace = load("ramp", options=Wanted(rate_rps=50.0, span_s=300.0, burstiness=math.inf))
    by_stage = counts(np.append(times(trace), 300.0), 30.0)
    assert by_stage == pytest.approx([1500 * 1.1**stage for stage in range(10)], abs=1.5)
    shorter = load("ramp", options=Wanted(rate_rps=50.0, requests=1500 + 1650, burstiness=math.inf))
    assert shorter.span_s == pytest.approx(60.0, abs=1e-5)


def test_closed_is_so_many_chains_of_one_user_each() -> None:
    trace = load("closed", options=Wanted(users=3, requests=10, think_s=2.0))
    assert [r.after for r in trace.requests] == [None, None, None, 0, 1, 2, 3, 4, 5, 6]
    assert [r.at_s for r in trace.requests[:5]] == [0.0, 0.002, 0.004, 0.004, 0.004] and not trace.open_loop
    assert all((r.think_s > 0) == (r.after is not None) for r in trace.requests)
    many = load("closed", options=Wanted(users=2, requests=20_000, think_s=2.0))
    assert np.mean([r.think_s for r in many.requests]) == pytest.approx(2.0, rel=0.05)
    at_a_rate = load("closed", options=Wanted(users=3, requests=10, rate_rps=5.0))
    assert at_a_rate.span_s == pytest.approx(2.0) and at_a_rate.requests[4].after == 1


def test_sessions_carry_on_what_was_said() -> None:
    wanted = Wanted(rate_rps=2.0, requests=10, turns=3, prompt_tokens=100, output_tokens=20, think_s=4.0)
    trace = load("sessions", options=wanted)
    assert [r.prompt_tokens for r in trace.requests[:4]] == [100, 220, 340, 100]
    assert [r.after for r in trace.requests] == [None, 0, 1, None, 3, 4, None, 6, 7, None]
    assert [r.carries for r in trace.requests[:4]] == [False, True, True, False]
    assert {r.at_s for r in trace.requests[3:6]} == {trace.requests[3].at_s}
    assert trace.span_s == pytest.approx(2.0), "four sessions at two a second"


def test_shared_prefix_is_one_block_before_what_is_ones_own() -> None:
    trace = load("shared-prefix", options=Wanted(requests=5, prompt_tokens=30, shared_tokens=200))
    assert {(r.prompt_tokens, r.blocks, r.block_tokens) for r in trace.requests} == {(230, (0,), 200)}


@pytest.mark.parametrize(
    ("name", "wanted", "complaint"),
    [
        ("poisson", Wanted(turns=2), "poisson takes no --turns; it takes --request-rate, --burstiness, --num-prompts"),
        ("sessions", Wanted(users=2), "sessions takes no --max-concurrency"),
        ("step", Wanted(rate_rps=1.0, requests=1, span_s=1.0), "give two of --request-rate, --num-prompts and --span"),
        ("closed", Wanted(span_s=9.0), "closed: how many requests --span holds is up to the server"),
        ("closed", Wanted(burstiness=2.0), "closed: --burstiness is that of --request-rate"),
        ("soak", Wanted(rate_rps=1e6, span_s=1e6), r"that makes 1e\+12 requests, the most is 100,000,000"),
    ],
)
def test_senseless_wishes_are_refused(name: str, wanted: Wanted, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(name, options=wanted)


def test_the_smallest_traces_work() -> None:
    for name in NAMES:
        trace = load(name, options=Wanted(requests=1))
        trace.check()
        assert len(trace.requests) == 1
    assert len(load("poisson", options=Wanted(rate_rps=0.001, span_s=1.0)).requests) == 1
