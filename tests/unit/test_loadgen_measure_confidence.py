"""Weighted percentiles, intervals of one run, and ratios between runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loadgen.measure.weighted as weighted
from loadgen.measure.confidence import confidence, drawn, interval, resamples
from loadgen.measure.latencies import measured
from loadgen.measure.ratio import ratios
from loadgen.measure.result import result
from loadgen.measure.slo import Slo, good, judge
from loadgen.measure.weighted import WeightedSample
from loadgen.record import Run
from shared.errors import ConfigError
from tests.support.records import completed, failed, run_of

PERCENTS = (0, 10, 50, 90, 99, 100)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=60),
    requests=st.integers(1, 6),
    seed=st.integers(0, 1000),
    cells=st.sampled_from([1, 20, 8_000_000]),
)
def test_a_weighted_percentile_is_numpys_of_the_repeated_sample(
    values: list[float], requests: int, seed: int, cells: int
) -> None:
    rng = np.random.default_rng(seed)
    owners = rng.integers(requests, size=len(values))
    weights = rng.integers(0, 4, size=(5, requests)).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "MOST_CELLS", cells)  # few and many blocks
        sample = WeightedSample(np.array(values), owners, requests)
    points, means = np.array(sample.percentiles(weights, PERCENTS)), sample.mean(weights)
    for k in range(len(weights)):
        repeated = np.repeat(values, weights[k][owners].astype(np.int64))
        if len(repeated):
            assert points[:, k] == pytest.approx(np.percentile(repeated, PERCENTS), abs=1e-9)
            assert means[k] == pytest.approx(repeated.mean(), abs=1e-9)
        else:
            assert np.isnan(points[:, k]).all() and np.isnan(means[k])


def test_drawing_takes_whole_requests_of_those_allowed() -> None:
    rows = np.array([True, False, True, True])
    weights = drawn(np.random.default_rng(1), 50, rows)
    assert weights.shape == (50, 4)
    assert (weights.sum(axis=1) == 3).all() and (weights[:, 1] == 0).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_work_is_bounded() -> None:
    assert resamples(100, 10_000) == 1000
    assert resamples(20_000, 4_000_000) == 200
    assert resamples(0, 0) == 1000


def test_an_interval_of_mostly_undefined_values_is_none() -> None:
    assert interval(np.array([1.0] * 89 + [np.nan] * 11)) is None
    assert interval(np.array([1.0] * 95 + [np.nan] * 5)) == [1.0, 1.0]
    assert interval(np.array([])) is None


def random_run(rng: np.random.Generator, requests: int = 80, *, slow: float = 1.0, schedule: str = "5c") -> Run:
    """TTFT exponential around `slow`; a third of the requests has gaps of 0.3 s throughout, the others of 0.1 s."""
    records = []
    for index in range(requests):
        ttft_s, gap_s = rng.exponential(slow), 0.3 if rng.random() < 1 / 3 else 0.1
        records.append(completed(index, 0.1 * index, *(ttft_s + gap_s * slow * token for token in range(20))))
    return run_of(records, window_s=(0.0, 0.1 * requests), schedule=schedule)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = {("ttft_s", "mean"): 1.0, ("ttft_s", "p50"): np.log(2), ("itl_s", "mean"): 0.1 + 0.2 / 3}
    covered = dict.fromkeys(truth, 0)
    share = 0
    rng = np.random.default_rng(3)
    for seed in range(40):
        table = measured(random_run(rng, 60))
        found = confidence(table, good(judge(table, Slo.parse("ttft=1"))), seed=seed)
        for (measure, stat), value in truth.items():
            ends = found[measure][stat]
            assert ends is not None
            covered[measure, stat] += ends[0] <= value <= ends[1]
        ends = found["attainment"]["value"]
        assert ends is not None
        share += ends[0] <= 1 - np.exp(-1) <= ends[1]
    assert all(34 <= times <= 40 for times in (*covered.values(), share)), (covered, share)


def test_intervals_repeat_with_the_seed_and_stand_around_the_figure() -> None:
    table = measured(random_run(np.random.default_rng(5)))
    met = good(judge(table, Slo.parse("ttft=1")))
    found = confidence(table, met, seed=7)
    assert found == confidence(table, met, seed=7) != confidence(table, met, seed=8)
    rate, goodput = found["attainment"]["value"], found["goodput_rps"]["value"]
    assert rate is not None and goodput is not None
    assert rate[0] < met.mean() < rate[1]
    assert goodput == pytest.approx([end * 80 / 8.0 for end in rate], abs=1e-9)


def test_one_request_gives_no_interval() -> None:
    table = measured(run_of([completed(0, 0.0, 1.0, 2.0, 3.0)]))
    found = confidence(table, table.completed, seed=0)
    assert all(ends is None for row in found.values() for ends in row.values())


def test_the_same_runs_have_ratios_of_one() -> None:
    run = random_run(np.random.default_rng(1))
    found = ratios([run], [run], slo=Slo.parse("ttft=1"), seed=0)
    names = {"ttft_s.p50", "itl_s.p99", "e2e_s.mean", "output_tokens_per_s", "requests_per_s", "attainment"}
    assert names < set(found)
    for ratio in found.values():
        assert ratio == {"ratio": 1.0, "low": 1.0, "high": 1.0, "significant": False}


def test_a_ratio_is_of_medians_over_runs_and_sees_a_real_difference() -> None:
    a = [random_run(np.random.default_rng(seed), schedule=f"{seed}") for seed in (1, 2, 3)]
    b = [random_run(np.random.default_rng(seed), slow=2.0, schedule=f"{seed}") for seed in (1, 2, 3)]
    found = ratios(a, b, slo=Slo.parse("ttft=1"), seed=0)
    expected = np.median([np.median(measured(run).ttft_s) for run in b])
    expected /= np.median([np.median(measured(run).ttft_s) for run in a])
    assert found["ttft_s.p50"]["ratio"] == pytest.approx(expected, abs=1e-9)
    assert found["ttft_s.p50"]["significant"] and found["itl_s.mean"]["significant"]
    worse = found["attainment"]["high"]
    assert worse is not None and worse < 1
    assert found == ratios(a, b, slo=Slo.parse("ttft=1"), seed=0)


def test_ratios_of_rates_are_those_of_the_results() -> None:
    a, b = random_run(np.random.default_rng(1)), random_run(np.random.default_rng(2), slow=1.5)
    slo = Slo.parse("ttft=1,tbt=0.2")
    found = ratios([a], [b], slo=slo, seed=0)
    before, after = (result(run, slo=slo) for run in (a, b))
    for name in ("output_tokens_per_s", "requests_per_s", "attainment", "goodput_rps"):
        left, right = before[name], after[name]
        assert isinstance(left, float) and isinstance(right, float) and left != right
        assert found[name]["ratio"] == pytest.approx(right / left, abs=1e-9)


def test_a_ratio_knows_that_runs_differ() -> None:
    """b is now slower, now faster than a by far more than its requests tell; one pair alone would be sure of itself."""
    rng = np.random.default_rng(4)
    speeds = (0.5, 2.0, 0.6, 1.7)
    a = [random_run(rng, schedule=f"{k}") for k in range(4)]
    b = [random_run(rng, slow=slow, schedule=f"{k}") for k, slow in enumerate(speeds)]
    assert ratios(a[1:2], b[1:2], slo=None, seed=0)["itl_s.mean"]["significant"]
    assert not ratios(a, b, slo=None, seed=0)["itl_s.mean"]["significant"]


def test_what_is_undefined_has_no_ratio() -> None:
    nothing = {"ratio": None, "low": None, "high": None, "significant": None}
    some = run_of([completed(0, 0.0, 1.0), completed(1, 0.0, 2.0)])
    none = run_of([failed(0, 0.0), failed(1, 0.0)])
    found = ratios([none], [some], slo=None, seed=0)
    assert all(ratio == nothing for ratio in found.values()), "a has nothing to divide by"
    found = ratios([some], [none], slo=Slo.parse("ttft=9"), seed=0)
    assert found["ttft_s.p50"] == found["itl_s.p50"] == nothing
    assert found["attainment"]["ratio"] == 0.0


def test_a_ratio_of_single_requests_claims_nothing() -> None:
    a, b = run_of([completed(0, 0.0, 1.0)]), run_of([completed(0, 0.0, 2.0)])
    found = ratios([a], [b], slo=None, seed=0)["ttft_s.p50"]
    assert found == {"ratio": 2.0, "low": None, "high": None, "significant": None}


def test_only_runs_of_the_same_schedule_are_compared() -> None:
    run, other = run_of([completed(0, 0.0, 1.0)]), run_of([completed(0, 0.0, 1.0)], schedule="0f")
    with pytest.raises(ConfigError, match="number 1 did not replay the same schedule"):
        ratios([run, run], [run, other], slo=None, seed=0)
    for a, b in (([run], [run, run]), ([], [])):
        with pytest.raises(ConfigError, match="as many runs"):
            ratios(a, b, slo=None, seed=0)
