"""Service levels: how they are written, who meets them, and the nine limits of Splitwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.measure.latencies import measured
from loadgen.measure.slo import Slo, attainment, good, judge
from loadgen.measure.splitwise import IdleSpeed, nine
from loadgen.record import Record, Run
from shared.errors import ConfigError
from tests.support.records import completed, failed, run_of

IDLE = IdleSpeed(ttft_s=((10, 0.5),), tbt_s=0.1)


def share(run: Run, slo: str, idle: IdleSpeed | None = None) -> float | None:
    table = measured(run)
    return attainment(good(judge(table, Slo.parse(slo), idle)), table)


def lone(prompt_tokens: int, ttft_s: float, tbt_s: float = 0.1) -> Record:
    return completed(0, 1.0, ttft_s, ttft_s + tbt_s, ttft_s + 2 * tbt_s, prompt_tokens=prompt_tokens)


def slowed(slow_downs: list[tuple[float, float]]) -> Run:
    """Requests of eleven tokens with these slow-downs of TTFT and of the time between tokens."""
    records = []
    for index, (ttft, tbt) in enumerate(slow_downs):
        times_s = [0.5 * ttft + 0.1 * tbt * token for token in range(11)]
        records.append(completed(index, 0.0, *times_s))
    return run_of(records)


def paused(tokens: int, *after: int) -> list[float]:
    """Times of tokens that come every 0.1 s, but for a pause of 5 s after each of these."""
    return [0.5 + 0.1 * n + 5.0 * sum(n > pause for pause in after) for n in range(tokens)]


def test_a_percentile_of_each_request_forgives_one_gap_of_many() -> None:
    answers = [paused(300, 7), paused(300, 7, 9, 11, 20), paused(3, 1)]
    table = measured(run_of([completed(index, 0.0, *times) for index, times in enumerate(answers)]))
    np.testing.assert_allclose(table.gap_p99_s, [np.percentile(np.diff(times), 99) for times in answers])
    assert list(good(judge(table, Slo.parse("tbt_p99=0.2")))) == [True, False, False]


def test_an_slo_is_read_as_written() -> None:
    slo = Slo.parse("ttft=3, tpot=0.15,second=.5,max_gap=1e0,e2e=60")
    assert slo.limits == (("ttft", 3.0), ("tbt", 0.15), ("second", 0.5), ("max_gap", 1.0), ("e2e", 60.0))
    assert not slo.splitwise
    assert Slo.parse("splitwise") == Slo(text="splitwise", splitwise=True)
    assert Slo.parse("splitwise,ttft=3").limits == (("ttft", 3.0),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ttf=3", "'ttf'"),
        ("", "''"),
        ("ttft=3,", "''"),
        ("splitwise=3", "'splitwise'"),
        ("ttft", "ttft needs seconds"),
        ("ttft=fast", "'fast'"),
        ("ttft=-1", "'-1'"),
        ("ttft=nan", "'nan'"),
        ("tbt=inf", "'inf'"),
        ("tbt=0", "'0'"),
    ],
)
def test_a_malformed_slo_is_named_with_the_keys_there_are(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Slo.parse(text)
    for word in (named, "ttft", "tbt", "tpot", "e2e", "second", "max_gap", "splitwise"):
        assert word in str(caught.value)


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="tbt is given twice"):
        Slo.parse("tbt=1,tpot=2")


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ("ttft=1", 1.0),
        ("ttft=0.99", 0.0),
        ("tbt=0.75", 1.0),
        ("tbt=0.74", 0.0),
        ("second=0.5", 1.0),
        ("second=0.49", 0.0),
        ("max_gap=1", 1.0),
        ("max_gap=0.99", 0.0),
        ("tbt_p99=1", 1.0),
        ("tbt_p99=0.9", 0.0),
        ("e2e=3", 1.0),
        ("e2e=2.99", 0.0),
        ("ttft=1,e2e=2.99", 0.0),
    ],
)
def test_a_limit_is_met_up_to_itself(slo: str, expected: float) -> None:
    assert share(run_of([completed(0, 0.0, 1.0, 1.5, 2.5, done_s=3.0)]), slo) == expected


def test_what_did_not_complete_is_a_miss() -> None:
    records = [completed(0, 0.0, 1.0), failed(1, 0.0, 0.1), failed(2, 0.0, sent=False), failed(3, 0.0)]
    assert share(run_of(records), "ttft=2") == 0.25


def test_a_single_token_meets_limits_between_tokens_and_no_token_misses_all() -> None:
    slo = "tbt=0.1,second=0.1,max_gap=0.1"
    assert share(run_of([completed(0, 0.0, 1.0)]), slo) == 1.0
    assert share(run_of([completed(0, 0.0, done_s=1.0)]), slo) == 0.0


def test_an_answer_without_an_end_misses_its_end() -> None:
    record = completed(0, 0.0, 1.0, 2.0)
    record.done_s = None
    assert share(run_of([record]), "e2e=9") == 0.0


def test_nothing_due_in_the_window_leaves_no_share() -> None:
    assert share(run_of([completed(0, 50.0, 1.0)]), "ttft=2") is None


latency_s = st.floats(0.01, 5.0)


@settings(max_examples=50, deadline=None)
@given(
    requests=st.lists(st.lists(latency_s, min_size=1, max_size=4), min_size=1, max_size=12),
    lost=st.integers(0, 3),
    key=st.sampled_from(["ttft", "tbt", "tbt_p99", "e2e", "second", "max_gap"]),
    limits_s=st.tuples(latency_s, latency_s),
)
def test_a_looser_slo_is_met_at_least_as_often(
    requests: list[list[float]], lost: int, key: str, limits_s: tuple[float, float]
) -> None:
    records = [completed(i, 0.0, *np.cumsum(steps_s)) for i, steps_s in enumerate(requests)]
    run = run_of([*records, *(failed(len(records) + i, 0.0) for i in range(lost))])
    strict, loose = (share(run, f"{key}={limit_s!r}") for limit_s in sorted(limits_s))
    assert strict is not None and loose is not None
    assert strict <= loose <= len(records) / (len(records) + lost)


def test_idle_speed_is_linear_between_and_beyond_the_lengths() -> None:
    lone_ones = [lone(100, 0.2), lone(100, 0.3), lone(100, 0.9), lone(200, 0.5), lone(400, 0.7, tbt_s=0.3)]
    idle = IdleSpeed.fit([*lone_ones, failed(9, 0.0, 5.0, 9.0)])
    assert idle.tbt_s == pytest.approx(0.1, abs=1e-9)
    lengths = np.array([100, 150, 200, 300, 400, 500, 90, 1])
    expected = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.3, 0.3]  # the line falls below the smallest measured at 90 and 1
    assert idle.ttft_alone_s(lengths).tolist() == pytest.approx(expected, abs=1e-9)


def test_idle_speed_of_one_length_is_that_for_all() -> None:
    assert IdleSpeed.fit([lone(100, 0.25)]).ttft_alone_s(np.array([1, 900])).tolist() == pytest.approx([0.25, 0.25])


def test_idle_speed_refuses_what_slow_downs_cannot_divide_by() -> None:
    with pytest.raises(ConfigError, match="no lone request"):
        IdleSpeed.fit([completed(0, 0.0, 1.0), failed(1, 0.0, 1.0, 2.0)])
    with pytest.raises(ConfigError, match="tbt_s must be above 0"):
        IdleSpeed.fit([completed(0, 0.0, 1.0, 1.0)])


def test_the_nine_limits_of_splitwise() -> None:
    table = nine(slowed([(1.5, 1.2)] * 10 + [(7.0, 1.2)]), IDLE)
    cells = {(name, stat): cell for name in ("ttft", "tbt", "e2e") for stat, cell in table[name].items()}  # type: ignore[attr-defined]
    limits = [cells[name, stat]["limit"] for name in ("ttft", "tbt", "e2e") for stat in ("p50", "p90", "p99")]
    assert limits == [2.0, 3.0, 6.0, 1.25, 1.5, 5.0, 1.25, 1.5, 5.0]
    assert cells["ttft", "p50"]["value"] == pytest.approx(1.5, abs=1e-9)
    assert cells["ttft", "p99"]["value"] == pytest.approx(1.5 + 0.9 * 5.5, abs=1e-9)
    assert cells["tbt", "p90"]["value"] == pytest.approx(1.2, abs=1e-9)
    assert cells["e2e", "p50"]["value"] == pytest.approx((0.75 + 1.2) / 1.5, abs=1e-9)
    assert [key for key, cell in cells.items() if not cell["met"]] == [("ttft", "p99"), ("e2e", "p50")]
    assert table["met"] is False
    assert nine(slowed([(1.0, 1.0)] * 5), IDLE)["met"] is True


def test_lost_requests_are_infinitely_slow() -> None:
    run = slowed([(1.0, 1.0)] * 3)
    run.records.append(failed(3, 0.0, 0.1, 0.2))
    table = nine(run_of(run.records), IDLE)
    assert table["ttft"]["p50"]["met"] and not table["ttft"]["p90"]["met"]  # type: ignore[index]
    assert table["ttft"]["p90"]["value"] is None and not table["met"]  # type: ignore[index]
    nobody = run_of([failed(0, 0.0), failed(1, 0.0)])
    assert nine(nobody, IDLE)["met"] is False
    assert nine(run_of([]), IDLE)["met"] is False


def test_answers_of_one_token_meet_the_limits_between_tokens() -> None:
    table = nine(run_of([completed(0, 0.0, 0.5)]), IDLE)
    assert table["met"] is True and table["tbt"]["p50"]["value"] is None  # type: ignore[index]


def test_each_request_is_held_to_the_limits_at_p99() -> None:
    run = slowed([(5.9, 1.0), (6.1, 1.0), (1.0, 4.9), (1.0, 5.1)])
    each = judge(measured(run), Slo.parse("splitwise"), IDLE)
    assert {key: met.tolist() for key, met in each.items()} == {
        "ttft_slow_down": [True, False, True, True],
        "tbt_slow_down": [True, True, True, False],
        "e2e_slow_down": [True, True, True, True],
    }
    assert share(run, "splitwise", IDLE) == 0.5
    with pytest.raises(ConfigError, match="idle speed"):
        share(run, "splitwise")
