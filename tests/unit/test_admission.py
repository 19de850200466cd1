"""Who is let in, who is not and why, and whether `retry_after_s` is true."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ids import EntryId
from shared.policy.admission import (
    GUESSED_STEPS,
    Admitted,
    Promise,
    Promises,
    Refused,
    Unmet,
    admit,
    ahead,
    first_second,
    judge,
)
from shared.policy.routing import Limits
from shared.policy.view import View
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role
from tests.support.samples import fit, report, submitted

LIMITS = Limits()
TTFT_1S = Promises(ttft_target_s=1.0)


def view_of(*reports: WorkerReport) -> View:
    view = View()
    for number, message in enumerate(reports):
        view.apply(message, EntryId(f"1-{number}"), 0.0)
    return view


def busy(name: str = "p0", queue_s: float = 0.0, **fields: object) -> WorkerReport:
    """Of a worker that does a token of a prompt per millisecond."""
    return report(name, queue_tokens=math.ceil(queue_s * 1000), queue_s=queue_s, **fields)


def asked(view: View, promises: Promises, tokens: int = 100, **fields: object) -> Admitted | Refused:
    return admit(view, submitted(tokens=tokens, **fields), promises, 0.0, LIMITS)


def refused(view: View, promises: Promises, tokens: int = 100, **fields: object) -> Refused:
    verdict = asked(view, promises, tokens, **fields)
    assert isinstance(verdict, Refused)
    return verdict


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_an_idle_mesh_lets_in_and_says_where_it_will_go() -> None:
    verdict = asked(view_of(report("p0"), report("t0", Role.TOKEN)), TTFT_1S)
    assert isinstance(verdict, Admitted) and verdict.placement is not None
    assert (verdict.placement.prompt.worker_id, verdict.placement.token.worker_id) == ("p0", "t0")


def test_whoever_would_wait_too_long_for_the_first_token_is_told_when_to_come_again() -> None:
    """5 s of prompts are waiting and this one takes 0.1 s: in 4.1 s it would have its first token 1 s later."""
    verdict = refused(view_of(busy(queue_s=5.0)), TTFT_1S)
    assert (verdict.promise, verdict.retry_after_s) == (Promise.TTFT, 5)
    assert "5.1 s" in verdict.reason and "target is 1 s" in verdict.reason
    assert isinstance(asked(view_of(busy(queue_s=0.9)), TTFT_1S), Admitted)


def test_a_deadline_is_a_promise_that_needs_no_target() -> None:
    verdict = refused(view_of(busy(queue_s=5.0)), Promises(), time_left_s=3.0)
    assert (verdict.promise, verdict.retry_after_s) == (Promise.DEADLINE, 3)
    assert isinstance(asked(view_of(busy(queue_s=5.0)), Promises()), Admitted)
    assert refused(view_of(busy(queue_s=5.0)), TTFT_1S, time_left_s=3.0).promise is Promise.TTFT


def test_nobody_is_refused_on_a_guess() -> None:
    promises = Promises(ttft_target_s=1.0, tbt_target_s=0.001)
    guess = replace(fit(), prefill_steps=GUESSED_STEPS - 1, decode_steps=GUESSED_STEPS - 1)
    assert isinstance(asked(view_of(busy(queue_s=5.0, fit=guess)), promises), Admitted)
    measured = replace(guess, decode_steps=GUESSED_STEPS)
    assert refused(view_of(busy(queue_s=5.0, fit=measured)), promises).promise is Promise.TBT


def test_time_between_tokens_has_a_small_tolerance() -> None:
    """10 ms and 0.1 ms a sequence: 10.1 ms for the first one."""
    view = view_of(report("m0", Role.MIXED))
    assert isinstance(asked(view, Promises(tbt_target_s=0.0097)), Admitted)
    assert refused(view, Promises(tbt_target_s=0.0095)).promise is Promise.TBT
    assert isinstance(asked(view, Promises(tbt_target_s=0.0095), max_tokens=1), Admitted), "one token has no gap"


def test_decodes_are_waited_for_until_enough_have_ended() -> None:
    """101 decodes at 20.1 ms; at most 57 may run for 15.75 ms. Answers of 100 tokens take 2.01 s: 44 % end in .88 s."""
    cost = fit(decode_ms=(10.0, 0.0, 0.1))
    worker = report(
        "m0", Role.MIXED, fit=cost, decodes=100, demand_blocks=100, kv_blocks_total=1000, expected_output_tokens=100.0
    )
    assert refused(view_of(worker), Promises(tbt_target_s=0.015)).retry_after_s == 1
    longer = replace(worker, expected_output_tokens=1000.0)
    assert refused(view_of(longer), Promises(tbt_target_s=0.015)).retry_after_s == 9


def test_the_queue_is_bounded_over_all_workers_of_the_model() -> None:
    view = view_of(busy("p0", 0.3), busy("p1", 0.2), report("other", model="another", queue_tokens=10_000))
    assert isinstance(asked(view, Promises(max_queued_tokens=600)), Admitted)
    verdict = refused(view, Promises(max_queued_tokens=599))
    assert (verdict.promise, verdict.retry_after_s) == (Promise.QUEUE, 1)
    assert "500 prompt tokens" in verdict.reason
    assert isinstance(asked(view_of(report("p0")), Promises(max_queued_tokens=10)), Admitted), "into an empty queue"


def test_where_no_wait_helps_none_is_named() -> None:
    verdict = refused(view_of(busy(queue_s=5.0)), Promises(ttft_target_s=0.05))
    assert verdict.retry_after_s is None
    assert refused(view_of(report("p0")), Promises(tbt_target_s=0.005)).retry_after_s is None


def test_who_cannot_be_placed_is_not_for_admission_to_refuse() -> None:
    assert asked(View(), Promises(ttft_target_s=0.01, max_queued_tokens=1)) == Admitted(placement=None)


# ---- the time to come again -----------------------------------------------------------------------------------------


@given(threshold=st.integers(1, 500), guess=st.integers(0, 600), horizon=st.integers(0, 500))
def test_the_first_second_is_found_from_any_guess(threshold: int, guess: int, horizon: int) -> None:
    questions: list[int] = []

    def admits(seconds: int) -> bool:
        questions.append(seconds)
        return seconds >= threshold

    found = first_second(admits, guess, horizon)
    assert found == (threshold if threshold <= max(1, horizon) else None)
    assert all(1 <= seconds <= max(1, horizon) for seconds in questions)
    assert len(questions) <= (2 if guess == threshold else 20)


Drawn = tuple[Role, float, float, int, float]  # queue_s, milliseconds per prompt token, decodes, tokens of an answer
workers = st.tuples(st.sampled_from(Role), st.floats(0, 60), st.floats(0.2, 5), st.integers(0, 60), st.floats(1, 2000))


def reports_of(drawn: Sequence[Drawn], *, decoding: bool) -> list[WorkerReport]:
    return [
        report(
            f"w{number}", role, queue_s=queue_s, queue_tokens=math.ceil(queue_s * 1000 / speed),
            fit=fit(prefill_ms=speed), decodes=decodes if decoding else 0, expected_output_tokens=output,
            demand_blocks=decodes if decoding else 0, kv_blocks_used=90 if decoding else 0,
        )
        for number, (role, queue_s, speed, decodes, output) in enumerate(drawn)
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(workers, min_size=1, max_size=5), st.integers(1, 900), st.floats(0.5, 30))
def test_whoever_waits_so_long_gets_in_and_a_second_earlier_does_not(
    drawn: list[Drawn], tokens: int, target_s: float
) -> None:
    """Each worker does one second of prefill per second."""
    reports = reports_of(drawn, decoding=False)
    verdict = asked(view_of(*reports), Promises(ttft_target_s=target_s), tokens)

    def after(seconds: int, margin_s: float) -> object:
        left = [replace(r, queue_s=max(0.0, r.queue_s - seconds)) for r in reports]
        queues = [replace(r, queue_tokens=math.ceil(r.queue_s * 1000 / r.fit.costs.prefill_ms[1])) for r in left]
        promises = Promises(ttft_target_s=target_s + margin_s)
        return judge(view_of(*queues), submitted(tokens=tokens), promises, 0.0, LIMITS)

    if not isinstance(verdict, Refused):
        return
    if verdict.retry_after_s is None:
        assert isinstance(after(60, -1e-6), Unmet), "an idle mesh is too slow as well"
        return
    assert not isinstance(after(verdict.retry_after_s, 1e-6), Unmet)
    if verdict.retry_after_s > 1:
        assert isinstance(after(verdict.retry_after_s - 1, -1e-6), Unmet)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(workers, min_size=1, max_size=5), st.integers(1, 900), st.floats(0.5, 30), st.floats(0.005, 0.05),
    st.integers(100, 100_000),
)  # fmt: skip
def test_the_same_holds_of_all_promises_at_once(
    drawn: list[Drawn], tokens: int, ttft_s: float, tbt_s: float, queued: int
) -> None:
    view = view_of(*reports_of(drawn, decoding=True))
    promises = Promises(ttft_target_s=ttft_s, tbt_target_s=tbt_s, max_queued_tokens=queued)
    verdict = asked(view, promises, tokens)

    def unmet(seconds: float) -> bool:
        later = ahead(view, "bytes", seconds, 0.0)
        return isinstance(judge(later, submitted(tokens=tokens), promises, 0.0, LIMITS), Unmet)

    if isinstance(verdict, Refused):
        if verdict.retry_after_s is None:
            assert unmet(1e9)
        else:
            assert not unmet(verdict.retry_after_s)
            assert verdict.retry_after_s == 1 or unmet(verdict.retry_after_s - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(workers, min_size=1, max_size=5), st.floats(0, 100))
def test_what_lies_ahead_is_never_busier_and_now_is_as_it_is(drawn: list[Drawn], seconds: float) -> None:
    view = view_of(*reports_of(drawn, decoding=True))
    later, same = ahead(view, "bytes", seconds, 0.0), ahead(view, "bytes", 0.0, 0.0)
    for worker_id, worker in view.workers.items():
        assert same.workers[worker_id].wait_s == worker.wait_s
        assert same.workers[worker_id].tbt_s == worker.tbt_s
        assert later.workers[worker_id].wait_s <= worker.wait_s
        assert later.workers[worker_id].tbt_s <= worker.tbt_s
        assert later.workers[worker_id].demand_blocks <= worker.demand_blocks
    for worker in ahead(view, "bytes", 1e9, 0.0).workers.values():
        assert (worker.prompt_tokens, worker.queue_s, worker.decodes, worker.demand_blocks) == (0, 0.0, 0, 0)
