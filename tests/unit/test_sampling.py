"""Sampling: the right distribution, from numbers that depend on (seed, choice, position, token id) alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.noise import noise_key
from shared.engine.port import Draw
from shared.engine.sampling import choose, gumbel

WARM = Draw(temperature=1.0, top_k=0, top_p=1.0, seed=3, choice=0, position=0)
PINNED_KEY = 0x546F36061B6B1313
PINNED_NOISE = [2.830839, 0.482761, 0.554055]
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])


def sampled(logits: torch.Tensor, draw: Draw, count: int) -> Counter[int]:
    draws = [replace(draw, position=position) for position in range(count)]
    return Counter(choose(logits.repeat(count, 1), draws))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    counts = sampled(LOGITS, replace(WARM, temperature=temperature), 4000)
    for token, probability in enumerate((LOGITS / temperature).softmax(-1).tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.025)


def test_top_k_keeps_the_k_largest() -> None:
    assert set(sampled(LOGITS, replace(WARM, top_k=3, temperature=3.0), 300)) == {0, 1, 4}
    assert set(sampled(LOGITS, replace(WARM, top_k=99, temperature=3.0), 300)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert set(sampled(logits, replace(WARM, top_p=0.5), 300)) == {1}
    assert set(sampled(logits, replace(WARM, top_p=0.51), 300)) == {1, 3}
    assert set(sampled(logits, replace(WARM, top_p=0.8), 300)) == {1, 2, 3}
    assert set(sampled(logits, replace(WARM, top_p=0.0), 50)) == {1}


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(sampled(logits, replace(WARM, top_k=2, top_p=0.6), 300)) == {0, 1}
    assert set(sampled(logits, replace(WARM, top_k=2, top_p=0.5), 300)) == {0}


def test_a_flat_distribution_reaches_beyond_the_head() -> None:
    logits = torch.zeros(5000)
    logits[4000:] = 0.001
    seen = set(sampled(logits, replace(WARM, top_p=0.999), 400))
    assert min(seen) < 3000
    assert set(sampled(logits, replace(WARM, top_p=0.1), 400)) <= set(range(4000, 5000))


def test_tokens_that_tie_stay_together() -> None:
    assert set(sampled(torch.tensor([1.0, 1.0, 1.0, 0.0]), replace(WARM, top_k=2), 200)) == {0, 1, 2}


def test_zero_temperature_and_top_1_are_greedy() -> None:
    assert set(sampled(LOGITS, replace(WARM, temperature=0.0), 20)) == {0}
    assert set(sampled(LOGITS, replace(WARM, top_k=1), 20)) == {0}
    assert set(sampled(LOGITS, replace(WARM, temperature=1e-30), 20)) == {0}


def test_banned_tokens_have_no_probability() -> None:
    assert choose(LOGITS[None].clone(), [replace(WARM, temperature=0.0, banned=(0, 1))]) == [4]
    assert 0 not in sampled(LOGITS, replace(WARM, banned=(0,)), 300)


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    draws = [
        replace(WARM, seed=1),
        replace(WARM, top_k=5),
        replace(WARM, temperature=0.0),
        replace(WARM, top_p=0.9, banned=(3, 4)),
        replace(WARM, choice=2),
        replace(WARM, position=9),
    ]
    alone = [choose(logits[i : i + 1].clone(), [draw])[0] for i, draw in enumerate(draws)]
    assert choose(logits.clone(), draws) == alone


def test_noise_is_pinned() -> None:
    """These numbers may never change: a stream that continues on a newer worker must draw what the older one would."""
    assert noise_key(WARM) == PINNED_KEY
    assert gumbel(torch.tensor([0, 1, 49151], dtype=torch.int32), PINNED_KEY).tolist() == pytest.approx(
        PINNED_NOISE, rel=1e-5
    )


@given(seed=st.integers(-(2**63), 2**64), choice=st.integers(0, 9), position=st.integers(0, 10**6))
def test_every_part_of_the_key_counts(seed: int, choice: int, position: int) -> None:
    draw = replace(WARM, seed=seed, choice=choice, position=position)
    others = [replace(draw, seed=seed + 1), replace(draw, choice=choice + 1), replace(draw, position=position + 1)]
    assert 0 <= noise_key(draw) < 2**64
    assert noise_key(draw) not in [noise_key(other) for other in others]


def test_noise_is_standard_gumbel() -> None:
    noise = torch.cat(
        [gumbel(torch.arange(50000, dtype=torch.int32), key) for key in (0, 1, 2**64 - 1, 0xDEADBEEF00000000)]
    ).double()
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.03)
    first, second = (gumbel(torch.arange(50000, dtype=torch.int32), key) for key in (5, 6))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.02
