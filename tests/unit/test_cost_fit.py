"""The cost model fitted online: it finds the coefficients, follows changes, and nothing ruins it."""

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policy.cost_fit import CostFitter
from shared.wire.costs import Costs

TRUTH = Costs((30.0, 0.4, 0.0001), (20.0, 0.002, 0.8))
SEEDS = st.integers(0, 2**32 - 1).map(random.Random)


def prefill(fitter: CostFitter, costs: Costs, tokens: int, factor: float = 1.0, start: int = 0) -> None:
    squares = (start + tokens) ** 2 - start**2
    fitter.observe(tokens, squares, 0, 0, costs.step_s(tokens, squares, 0, 0) * factor)


def decode(fitter: CostFitter, costs: Costs, context: int, batch: int, factor: float = 1.0) -> None:
    fitter.observe(0, 0, context, batch, costs.decode_s(context, batch) * factor)


def noise(rng: random.Random, share: float = 0.05) -> float:
    return max(0.5, rng.gauss(1.0, share))


def learn(fitter: CostFitter, costs: Costs, rng: random.Random, steps: int, share: float = 0.05) -> None:
    for _ in range(steps):
        prefill(fitter, costs, rng.randint(1, 2048), noise(rng, share), start=rng.choice([0, 0, 2048, 4096]))
        batch = rng.randint(1, 48)
        decode(fitter, costs, batch * rng.randint(20, 3000), batch, noise(rng, share))
        fitter.check()


def off(fitter: CostFitter, costs: Costs) -> float:
    """Largest relative error of a prediction over what was seen."""
    fit = fitter.fit.costs
    prompts = [fit.prefill_s(n) / costs.prefill_s(n) for n in (128, 512, 1024, 2048)]
    decodes = [fit.decode_s(b * c, b) / costs.decode_s(b * c, b) for b in (4, 16, 40) for c in (200, 1000, 2500)]
    return max(abs(ratio - 1.0) for ratio in [*prompts, *decodes])


def test_it_finds_the_coefficients_of_a_quiet_machine() -> None:
    fitter = CostFitter()
    learn(fitter, TRUTH, random.Random(1), 300, share=0.0)
    assert off(fitter, TRUTH) < 1e-3
    assert fitter.fit.costs.prefill_ms == pytest.approx(TRUTH.prefill_ms, rel=0.02)
    assert fitter.fit.costs.decode_ms == pytest.approx(TRUTH.decode_ms, rel=0.02)
    assert fitter.fit.prefill_error < 0.01 and fitter.fit.decode_error < 0.01
    assert fitter.fit.prefill_steps == fitter.fit.decode_steps == 300


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.1, 1000.0), st.floats(0.01, 2.0), st.floats(0.0, 0.0005), st.floats(0.05, 20.0))
def test_predictions_are_right_whatever_the_machine_and_its_noise(
    rng: random.Random, fixed_ms: float, token_ms: float, bend: float, scale: float
) -> None:
    """Coefficients over orders of magnitude, 5 % noise: the worst prediction is, in the median, within 3.5 %."""
    truth = Costs((fixed_ms, token_ms, bend * token_ms), (20.0 * scale, 0.002 * scale, 0.8 * scale))
    fitter = CostFitter()
    learn(fitter, truth, rng, 200)
    worst = []
    for _ in range(20):
        learn(fitter, truth, rng, 15)
        worst.append(off(fitter, truth))
    assert sorted(worst)[10] < 0.035 and max(worst) < 0.15
    assert 0.02 < fitter.fit.decode_error < 0.08, "the error is about the noise: a mean deviation of 4 %"


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([0.3, 0.5, 2.0, 4.0]))
def test_it_follows_a_machine_that_became_slower_or_faster(rng: random.Random, factor: float) -> None:
    fitter = CostFitter()
    learn(fitter, TRUTH, rng, 200)
    changed = Costs(tuple(factor * c for c in TRUTH.prefill_ms), tuple(factor * c for c in TRUTH.decode_ms))
    learn(fitter, changed, rng, 10)
    assert fitter.fit.decode_error > 0.1, "it notices"
    learn(fitter, changed, rng, 290)
    assert off(fitter, changed) < 0.08


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_hiccups_do_not_ruin_it(rng: random.Random) -> None:
    """One step in thirty takes ten times as long, among them the very latest; one even a tenth."""
    fitter = CostFitter()
    learn(fitter, TRUTH, rng, 150, share=0.02)
    for _ in range(6):
        learn(fitter, TRUTH, rng, 29, share=0.02)
        prefill(fitter, TRUTH, 500, 10.0)
        decode(fitter, TRUTH, 4000, 8, 10.0)
        assert off(fitter, TRUTH) < 0.06
    decode(fitter, TRUTH, 4000, 8, 0.1)
    assert off(fitter, TRUTH) < 0.1
    learn(fitter, TRUTH, rng, 60, share=0.02)
    assert off(fitter, TRUTH) < 0.04


def test_what_is_never_seen_keeps_the_proportions_of_the_guess() -> None:
    """Always a batch of one over the same context: how much of a step is fixed cannot be known."""
    fitter = CostFitter(Costs((10.0, 1.0, 0.0), (30.0, 0.01, 3.0)))
    truth, rng = Costs((0.0, 1.0, 0.0), (60.0, 0.02, 6.0)), random.Random(3)
    for _ in range(3000):
        decode(fitter, truth, 500, 1, noise(rng))
    a, b, c = fitter.fit.costs.decode_ms
    assert fitter.fit.costs.decode_s(500, 1) == pytest.approx(truth.decode_s(500, 1), rel=0.03)
    assert (a, b, c) == pytest.approx((60.0, 0.02, 6.0), rel=0.3), "the guess was slow by half in everything"


def test_what_was_learned_is_not_forgotten_while_it_is_not_seen() -> None:
    fitter, rng = CostFitter(), random.Random(4)
    learn(fitter, TRUTH, rng, 300, share=0.02)
    for _ in range(3000):
        decode(fitter, TRUTH, 300, 1, noise(rng, 0.02))
    assert fitter.fit.costs.decode_s(40_000, 40) == pytest.approx(TRUTH.decode_s(40_000, 40), rel=0.1)


@pytest.mark.parametrize(("tokens", "batch"), [(1500, 2), (20, 30)])
def test_of_mixed_steps_the_larger_part_learns(tokens: int, batch: int) -> None:
    """A worker that never has steps of one phase alone still follows a change of its speed."""
    fitter = CostFitter(TRUTH)
    slow = Costs(tuple(2 * ms for ms in TRUTH.prefill_ms), tuple(2 * ms for ms in TRUTH.decode_ms))
    for number in range(300):
        more = tokens + number % 7 * 10, batch + number % 3
        shape = more[0], more[0] ** 2, 500 * more[1], more[1]
        fitter.observe(*shape, slow.step_s(*shape))
    assert fitter.fit.costs.step_s(*shape) == pytest.approx(slow.step_s(*shape), rel=0.05)
    assert fitter.fit.prefill_steps == fitter.fit.decode_steps == 300
    fitter.check()


def test_a_single_odd_mixed_step_changes_little() -> None:
    fitter = CostFitter(TRUTH)
    for _ in range(60):
        fitter.observe(500, 250_000, 2000, 4, TRUTH.step_s(500, 250_000, 2000, 4))
    fitter.observe(500, 250_000, 2000, 4, 10 * TRUTH.step_s(500, 250_000, 2000, 4))
    assert fitter.fit.costs.step_s(500, 250_000, 2000, 4) == pytest.approx(TRUTH.step_s(500, 250_000, 2000, 4), rel=0.1)


def test_a_first_step_scales_the_guess() -> None:
    fitter = CostFitter()
    guess = fitter.fit.costs
    prefill(fitter, guess, 256, 0.01)
    assert fitter.fit.costs.prefill_s(2048) == pytest.approx(guess.prefill_s(2048) / 100, rel=0.01)
    assert fitter.fit.costs.decode_ms == guess.decode_ms


def test_nonsense_is_not_fitted() -> None:
    fitter = CostFitter()
    before = fitter.fit
    fitter.observe(0, 0, 0, 0, 1.0)
    fitter.observe(10, 100, 0, 0, 0.0)
    assert fitter.fit == before


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 5000), st.integers(0, 64), st.floats(1e-7, 1e4)), max_size=80
    )
)
def test_coefficients_stay_finite_and_none_is_negative(steps: list[tuple[int, int, int, float]]) -> None:
    fitter = CostFitter()
    for tokens, context, batch, seconds in steps:
        fitter.observe(tokens, tokens * tokens, context * batch, batch, seconds)
        fitter.check()


def test_an_observation_is_cheap() -> None:
    fitter, rng = CostFitter(), random.Random(5)
    learn(fitter, TRUTH, rng, 20)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(50):
            decode(fitter, TRUTH, 4000, 8)
        best = min(best, (time.perf_counter() - started) / 50)
    assert best < 150e-6, "50 microseconds, and room for a slow machine"


@pytest.mark.parametrize(("took_ms", "learned_ms"), [(40.0, 40.0), (24.0, 40.0), (60.0, 60.0), (15.0, 30.0)])
def test_a_step_with_lent_cores_corrects_only_what_cannot_be(took_ms: float, learned_ms: float) -> None:
    """40 ms are foretold. What takes 15 with twice the threads takes 15 to 30 without."""
    fitter = CostFitter()
    for _ in range(40):
        fitter.observe(100, 100**2, 0, 0, 0.04)
    before = fitter.fit
    for _ in range(200):
        fitter.observe(100, 100**2, 0, 0, took_ms / 1000, 2.0)
    assert fitter.fit.costs.prefill_s(100) * 1000 == pytest.approx(learned_ms, rel=0.05)
    if learned_ms == 40.0:
        assert fitter.fit == replace(before, prefill_steps=240), "nothing has been learned, errors included"
