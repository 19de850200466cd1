"""Latencies, rates and the result, against figures worked out by hand."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from loadgen.measure.latencies import MEASURES, measured
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.measure.stats import stats
from loadgen.record import ClientProcess, Outcome, Record, Run
from tests.support.records import completed, failed, run_of

KEYS = {
    "target", "model", "trace", "started", "notes", "valid", "invalid_reasons", "schedule_sha256", "duration_s",
    "window_s", "requests", "errors", "ttft_s", "ttft_from_send_s", "itl_s", "tpot_s", "second_token_s", "max_gap_s",
    "e2e_s", "output_tokens_per_s", "input_tokens_per_s", "requests_per_s", "slo", "attainment", "attainment_each",
    "goodput_rps", "good_output_tokens_per_s", "splitwise", "confidence", "client",
}  # fmt: skip
IDLE = IdleSpeed(ttft_s=((10, 0.5),), tbt_s=0.1)


def values(run: Run, measure: str) -> list[float]:
    listed: list[float] = measured(run).sample(measure)[0].tolist()
    return listed


def of(run: Run, slo: str | None = None) -> dict[str, Any]:
    return result(run, slo=None if slo is None else Slo.parse(slo), idle=IDLE)


def test_latencies_of_one_request() -> None:
    record = completed(0, 2.0, 0.5, 0.75, 1.75, 2.0, done_s=2.25)
    record.sent_s = 2.125
    record.event_tokens = [1, 2, 1, 1]
    run = run_of([record])
    expected = {
        "ttft_s": [0.5], "ttft_from_send_s": [0.375], "itl_s": [0.25, 1.0, 0.25], "second_token_s": [0.25],
        "max_gap_s": [1.0], "tpot_s": [1.5 / 4], "e2e_s": [2.25],
    }  # fmt: skip
    assert {measure: values(run, measure) for measure in MEASURES} == expected


def test_requests_without_gaps_do_not_borrow_those_of_their_neighbours() -> None:
    run = run_of(
        [
            completed(0, 0.0, 1.0),
            failed(1, 0.0),
            completed(2, 0.0, 1.0, 1.5, 3.5),
            failed(3, 0.0, 4.0, 9.0),
            completed(4, 0.0, 2.0),
            completed(5, 0.0, 2.0, 2.25),
        ]
    )
    table = measured(run)
    assert values(run, "itl_s") == [0.5, 2.0, 0.25]
    assert table.sample("itl_s")[1].tolist() == [2, 2, 5]
    assert values(run, "max_gap_s") == [2.0, 0.25]
    assert values(run, "second_token_s") == [0.5, 0.25]
    assert values(run, "tpot_s") == [1.25, 0.25]
    assert table.tokens.tolist() == [1, 0, 3, 2, 1, 2]


def test_latencies_are_of_completed_requests_due_in_the_window() -> None:
    records = [
        completed(0, 0.9, 0.1, 0.2),  # warm-up
        completed(1, 1.0, 1.0, 2.0),  # both ends of the window belong to it
        failed(2, 1.5, 7.0, 8.0),
        completed(3, 2.0, 3.0, 5.0),  # ends after it
        completed(4, 2.1, 9.0, 9.5),
    ]
    run = run_of(records, window_s=(1.0, 2.0))
    assert values(run, "ttft_s") == [1.0, 3.0]
    assert values(run, "itl_s") == [1.0, 2.0]
    assert values(run, "e2e_s") == [2.0, 5.0]


def test_records_are_put_in_the_order_of_the_schedule() -> None:
    run = run_of([completed(2, 0.0, 3.0), completed(0, 0.0, 1.0), completed(2, 0.0, 9.0)], scheduled=3)
    table = measured(run)
    assert table.ttft_s[[0, 2]].tolist() == [1.0, 3.0] and math.isnan(table.ttft_s[1])
    assert table.present.tolist() == table.counted.tolist() == [True, False, True]


def test_percentiles_interpolate_between_the_neighbours() -> None:
    found = stats(np.array([4.0, 1.0, 3.0, 2.0]))
    expected = {"mean": 2.5, "p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4.0, "n": 4}
    assert found == pytest.approx(expected, abs=1e-9)
    assert stats(np.array([])) == {"mean": None, "p50": None, "p90": None, "p99": None, "max": None, "n": 0}


def test_rates_count_what_happens_in_the_window_whoever_it_belongs_to() -> None:
    records = [
        completed(0, 0.0, 1.0, 3.0, 5.0, prompt_tokens=100),  # begun before the window: two tokens, one completion
        failed(1, 1.5, 2.5, 3.5),  # due before the window, begun inside: two tokens
        completed(2, 5.0, 0.5, 0.75, 2.0, prompt_tokens=30),  # begun inside: two tokens, completed after it
    ]
    records[2].event_tokens = [1, 4, 1]
    found = of(run_of(records, window_s=(2.0, 6.0)))
    assert found["output_tokens_per_s"] == pytest.approx((2 + 2 + 5) / 4, abs=1e-9)
    assert found["requests_per_s"] == pytest.approx(1 / 4, abs=1e-9)
    assert found["input_tokens_per_s"] == pytest.approx((10 + 30) / 4, abs=1e-9)


def test_the_result_of_a_small_run() -> None:
    records = [
        completed(0, 0.0, 1.0, 1.1, 1.2),
        completed(1, 1.0, 3.5, 3.6),
        failed(2, 2.0, error="reset"),
        failed(3, 2.0, error="reset"),
        failed(4, 2.0, error="full"),
        completed(5, 3.0, 1.0, 2.0),
        completed(6, 30.0, 0.1),
    ]
    records[4].outcome = Outcome.REJECTED
    run = run_of(records, clients=[ClientProcess(requests=7, cpu_share=0.25)])
    run.notes.append("as it is")
    found = of(run, "ttft=3,tpot=0.15")
    assert set(found) == KEYS
    assert found["valid"] and found["invalid_reasons"] == [] and found["notes"] == ["as it is"]
    assert found["requests"] == {"scheduled": 7, "completed": 4, "failed": 2, "rejected": 1}
    assert found["errors"] == {"reset": 2, "full": 1}
    assert found["slo"] == "ttft=3,tpot=0.15"
    assert found["attainment_each"] == pytest.approx({"ttft": 2 / 6, "tbt": 2 / 6}, abs=1e-9)
    assert found["attainment"] == pytest.approx(1 / 6, abs=1e-9)
    assert found["goodput_rps"] == pytest.approx(0.1, abs=1e-9)
    assert found["good_output_tokens_per_s"] == pytest.approx(0.3, abs=1e-9)
    assert found["client"]["processes"] == [{"requests": 7, "cpu_share": 0.25}]
    assert found["client"]["send_lag_s"]["max"] == 0.0 and found["client"]["send_lag_s"]["n"] == 7
    assert found["duration_s"] == 10.0 and found["window_s"] == [0.0, 10.0]


def test_without_an_slo_there_is_no_attainment() -> None:
    found = of(run_of([completed(0, 0.0, 1.0)]))
    assert [found[key] for key in ("slo", "attainment", "goodput_rps", "good_output_tokens_per_s")] == [None] * 4
    assert found["attainment_each"] == {}
    assert found["confidence"]["attainment"] == {"value": None}


@pytest.mark.parametrize(
    "records",
    [
        [],
        [failed(0, 1.0), failed(1, 2.0)],
        [failed(0, 1.0, sent=False)],
        [completed(0, 1.0, 0.5)],
        [completed(0, 99.0, 0.5)],
        [completed(0, math.nan, 0.5)],
        [completed(0, 1.0, 0.5, math.inf), completed(1, 1.0, 0.5, math.inf, 7.0)],
    ],
)
@pytest.mark.parametrize("window_s", [(0.0, 10.0), (1.0, 1.0), (math.nan, 10.0)])
@pytest.mark.parametrize("slo", [None, "ttft=1", "splitwise"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_no_result_holds_what_json_cannot_say(
    records: Sequence[Record], window_s: tuple[float, float], slo: str | None
) -> None:
    found = of(run_of(records, window_s=window_s), slo)
    assert set(json.loads(json.dumps(found, allow_nan=False))) == KEYS
