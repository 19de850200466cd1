"""The search for the highest rate that holds."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.measure.search import RateSearch, Try
from shared.errors import ConfigError


def searched(search: RateSearch, attainment: Callable[[float], float]) -> RateSearch:
    while (rate_rps := search.next_rate()) is not None:
        search.observe(rate_rps, attainment(rate_rps), True)
        search.check()
    return search


@settings(max_examples=60, deadline=None)
@given(
    limit_rps=st.floats(0.01, 1000.0),
    start_rps=st.floats(0.01, 1000.0),
    target=st.sampled_from([0.9, 0.99]),
    tolerance=st.sampled_from([0.01, 0.05, 0.2]),
)
def test_it_finds_the_rate_of_a_falling_curve(
    limit_rps: float, start_rps: float, target: float, tolerance: float
) -> None:
    def curve(rate_rps: float) -> float:
        return target + (limit_rps - rate_rps) / (limit_rps + rate_rps) * (1 - target)

    search = RateSearch(start_rps=start_rps, target=target, tolerance=tolerance, most_tries=40)
    best = searched(search, curve).best
    assert search.settled and best is not None
    assert best <= limit_rps * (1 + 1e-9) <= best * (1 + tolerance) * (1 + 2e-9)


def test_it_doubles_then_bisects_and_keeps_its_tries() -> None:
    search = searched(RateSearch(start_rps=1.0, most_tries=6), lambda rate_rps: 1.0 if rate_rps <= 5 else 0.5)
    rates = [one.rate_rps for one in search.tries]
    assert rates == pytest.approx([1, 2, 4, 8, math.sqrt(32), math.sqrt(4 * math.sqrt(32))])
    assert [one.attainment for one in search.tries] == [1.0, 1.0, 1.0, 0.5, 0.5, 1.0]
    assert search.best == pytest.approx(math.sqrt(4 * math.sqrt(32)))
    assert not search.settled and search.next_rate() is None, "the tries are used up"


def test_nothing_holds() -> None:
    search = searched(RateSearch(start_rps=8.0, most_tries=4), lambda rate_rps: 0.0)
    assert [one.rate_rps for one in search.tries] == [8.0, 4.0, 2.0, 1.0]
    assert search.best is None and not search.settled


def test_a_noisy_curve_ends_near_the_truth() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(30):
        search = RateSearch(start_rps=1.0, most_tries=20)
        found.append(searched(search, lambda r: 1 / (1 + (r / 20) ** 8) + rng.normal(0, 0.01)).best)
        assert search.settled
    truth_rps = 20 * (1 / 0.9 - 1) ** (1 / 8)
    assert all(best is not None and 0.85 * truth_rps < best < 1.1 * truth_rps for best in found)


def test_a_pass_above_a_miss_is_not_believed() -> None:
    search = RateSearch(start_rps=1.0)
    for rate_rps, attainment in ((4.0, 0.95), (5.0, 0.85), (6.0, 0.95)):
        search.observe(rate_rps, attainment, True)
    assert (search.best, search.settled) == (4.0, False)
    search.observe(4.0, 0.85, True)
    assert (search.best, search.next_rate()) == (None, 2.0)


@pytest.mark.parametrize(("attainment", "valid"), [(1.0, False), (None, True)])
def test_a_try_that_shows_nothing_bounds_the_search(attainment: float | None, valid: bool) -> None:
    search = RateSearch(start_rps=4.0)
    assert [search.bounded_by_invalid, search.next_rate()] == [False, 4.0]
    search.observe(4.0, attainment, valid)
    assert [search.bounded_by_invalid, search.next_rate()] == [True, 2.0]
    search.observe(2.0, 1.0, True)
    assert [search.bounded_by_invalid, search.best] == [True, 2.0]
    search.observe(3.0, 0.5, True)
    assert [search.bounded_by_invalid, search.best] == [False, 2.0]
    assert search.tries[0] == Try(rate_rps=4.0, attainment=attainment, valid=valid)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"start_rps": 0.0}, "start rate"),
        ({"start_rps": math.nan}, "start rate"),
        ({"start_rps": 1.0, "target": 1.5}, "target"),
        ({"start_rps": 1.0, "tolerance": 0.0}, "tolerance"),
        ({"start_rps": 1.0, "most_tries": 0}, "tries"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RateSearch(**options)  # type: ignore[arg-type]
