"""Each gate trips on a run that breaks just its rule, and says nothing of one that keeps them all."""

import math
from collections.abc import Callable

import pytest

from loadgen.measure.gates import invalid_reasons, remarks
from loadgen.record import ClientProcess, Outcome, Run
from tests.support.records import completed, failed, run_of


def faultless() -> Run:
    records = [completed(i, 0.1 * i, 0.5, 0.6, 0.7, 0.8) for i in range(200)]
    run = run_of(records, window_s=(0.0, 20.0), clients=[ClientProcess(requests=200, cpu_share=0.7)])
    for record in records[:50]:
        record.sent_s = record.due_s + 0.0049
    records[0].sent_s = 0.0499
    records[1].sent_s = records[1].due_s - 0.0009
    records[2] = failed(2, 0.2, 1.0, 2.0)
    records[3] = failed(3, 0.3, sent=False)
    run.records[:] = records
    return run


def late_often(run: Run) -> None:
    for record in run.records[10:20]:
        record.sent_s = record.due_s + 0.007


def late_once(run: Run) -> None:
    run.records[0].sent_s = 0.0625


def busy(run: Run) -> None:
    run.clients.append(ClientProcess(requests=0, cpu_share=0.715))


def lost(run: Run) -> None:
    del run.records[7], run.records[150]


def doubled(run: Run) -> None:
    run.records.append(run.records[9])


def unknown(run: Run) -> None:
    run.records.append(completed(777, 1.0, 0.5))


def uncounted(run: Run) -> None:
    """The sum stays right: errors of both signs must show all the same."""
    run.records[30].usage_output_tokens = 3
    run.records[40].usage_output_tokens = 5


def silent_once(run: Run) -> None:
    run.records[30].usage_output_tokens = None


def misread(run: Run) -> None:
    run.records[30].usage_prompt_tokens = 12


def short(run: Run) -> None:
    run.records[30].output_tokens = 6


def interrupted(run: Run) -> None:
    run.invalid_reasons.append("interrupted after 3 s")


def early(run: Run) -> None:
    run.records[30].sent_s = run.records[30].due_s - 0.01


def first_before_sent(run: Run) -> None:
    run.records[2].sent_s, run.records[2].event_s = 0.204, [0.203, 0.6]


def gap_below_zero(run: Run) -> None:
    run.records[30].event_s[1] = run.records[30].event_s[2] + 0.01


def done_before_last(run: Run) -> None:
    run.records[30].done_s = run.records[30].event_s[-1] - 0.01


def never_done(run: Run) -> None:
    run.records[30].done_s = None


def no_number(run: Run) -> None:
    run.records[30].event_s[0] = math.nan


def all_lost(run: Run) -> None:
    for record in run.records:
        record.outcome = Outcome.FAILED


def nobody_due(run: Run) -> None:
    for record in run.records:
        record.due_s, record.sent_s = record.due_s + 100, None if record.sent_s is None else record.sent_s + 100
        record.event_s = [at_s + 100 for at_s in record.event_s]
        record.done_s = None if record.done_s is None else record.done_s + 100


def test_a_faultless_run_gives_no_reason() -> None:
    assert invalid_reasons(faultless()) == []


BACKWARDS = "times run backwards or are missing in 1 requests, 0 may: "


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (late_often, "send lag p99 is 7.0 ms, the limit is 5 ms"),
        (late_once, "send lag max is 62.5 ms, the limit is 50 ms"),
        (busy, "client process 1 used 71.5 % of a core, the limit is 70 %"),
        (lost, "2 of 200 requests have no record, each needs one: 7, 151"),
        (doubled, "1 of 200 requests have several records, 1 is allowed: 9"),
        (unknown, "1 records are of requests outside 0 to 199: 777"),
        (
            uncounted,
            "output tokens received and reported by the server differ in 2 of 198 completed requests, 0 % of them may; "
            "the first is request 30 with 4 and 3",
        ),
        (
            silent_once,
            "output tokens received and reported by the server differ in 1 of 198 completed requests, 0 % of them may; "
            "the first is request 30 with 4 and none",
        ),
        (
            misread,
            "prompt tokens asked for and reported by the server differ in 1 of 198 completed requests, 0 % of them "
            "may; the first is request 30 with 10 and 12",
        ),
        (
            short,
            "output tokens asked for and received differ in 1 of 198 completed requests, 0 % of them may; the first "
            "is request 30 with 6 and 4",
        ),
        (interrupted, "interrupted after 3 s"),
        (early, BACKWARDS + "30"),
        (first_before_sent, BACKWARDS + "2"),
        (gap_below_zero, BACKWARDS + "30"),
        (done_before_last, BACKWARDS + "30"),
        (never_done, BACKWARDS + "30"),
        (no_number, BACKWARDS + "30"),
        (all_lost, "no request completed of 200 scheduled, at least 1 is needed"),
        (nobody_due, "no request was due inside the window, at least 1 is needed"),
    ],
)
def test_one_broken_rule_gives_one_reason(spoil: Callable[[Run], None], reason: str) -> None:
    run = faultless()
    spoil(run)
    assert invalid_reasons(run) == [reason]


def test_an_empty_schedule_or_window_is_no_measurement() -> None:
    assert invalid_reasons(run_of([])) == ["no request was scheduled, at least 1 is needed"]
    one = run_of([completed(0, 0.0, 1.0)], window_s=(0.0, 0.0))
    assert invalid_reasons(one) == ["the window lasts 0 s, more than 0 s are needed"]


def test_a_tolerance_lets_some_counts_differ() -> None:
    run = faultless()
    uncounted(run)
    assert invalid_reasons(run, count_tolerance=2 / 198) == []
    assert len(invalid_reasons(run, count_tolerance=1.9 / 198)) == 1
    lost(run)
    assert len(invalid_reasons(run, count_tolerance=1.0)) == 1, "it is for counts only"


def test_many_ids_are_named_in_part() -> None:
    assert invalid_reasons(run_of([completed(0, 0.0, 1.0)], scheduled=9)) == [
        "8 of 9 requests have no record, each needs one: 1, 2, 3, 4, 5 and 3 more"
    ]


def test_a_server_without_usage_is_remarked_on_and_valid() -> None:
    run = faultless()
    for record in run.records:
        record.usage_prompt_tokens = record.usage_output_tokens = None
    assert invalid_reasons(run) == []
    assert remarks(run) == [
        "the server reports no usage: token counts are those of the events alone",
        "1 of 200 requests were never sent; they count as misses",
    ]
    assert remarks(run_of([completed(0, 0.0, 1.0)])) == remarks(run_of([failed(0, 0.0)])) == []
