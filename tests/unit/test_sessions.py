"""The gateway's session decider: each phase's trouble, then random interleavings of everything."""

import pytest

from services.gateway import events as ev
from services.gateway.events import Deliver, End, Outcome, Submit, Watch
from services.gateway.sessions import MAX_FAILURES, PLACEMENT_PATIENCE_S, UNPLACEABLE_LIMIT_S
from shared.ids import Address, RequestId, ServiceId, WorkerId
from shared.link.port import Lost
from shared.wire.messages import Unplaceable
from shared.wire.terms import Finish
from tests.support.sessions import (
    GATEWAY,
    OUTPUT,
    P2,
    T2,
    P,
    R,
    T,
    cancelled,
    chunk,
    failed,
    handed_off,
    heard,
    new,
    only,
    opened,
    placed,
    resubmitted,
    run,
)


def test_the_straight_way() -> None:
    sessions = new()
    first = resubmitted(run(sessions, opened()))
    assert (first.attempt, first.token_ids, first.emitted, first.gateway_id) == (1, (1, 2, 3), 0, GATEWAY)
    assert run(sessions, placed()) == [Watch(peer=P), Watch(peer=T)]
    assert run(sessions, chunk(0, peer=P)) == [Deliver(request_id=R, token_ids=(100,), finish=None)]
    assert run(sessions, handed_off(), chunk(0, peer=T)) == []
    end = run(sessions, chunk(1, 2, finish=Finish.STOP))
    assert end == [Deliver(request_id=R, token_ids=(101, 102), finish=Finish.STOP)]
    assert len(sessions) == 0
    timeline = sessions.timelines.get(R)
    assert timeline and [stage["stage"] for stage in timeline.as_json()["stages"]] == [
        "received", "submitted", "placed", "first_token", "handed_off", "ended",
    ]  # fmt: skip


def test_late_frames_of_an_ended_request_are_not_answered() -> None:
    sessions = new()
    run(sessions, opened(), chunk(0, finish=Finish.STOP))
    assert run(sessions, placed()) == run(sessions, handed_off()) == run(sessions, chunk(0, peer=P)) == []


def test_gaps_wait_and_the_finish_waits_for_them() -> None:
    sessions = new()
    run(sessions, opened(), placed())
    assert run(sessions, chunk(2, 2, finish=Finish.LENGTH)) == []
    assert run(sessions, chunk(0, 3)) == [Deliver(request_id=R, token_ids=OUTPUT[:4], finish=Finish.LENGTH)]


def test_loss_of_the_token_worker_continues_elsewhere_without_repeating() -> None:
    sessions = new()
    run(sessions, opened(), placed(), chunk(0, peer=P), handed_off(), chunk(1), chunk(3))
    commands = run(sessions, Lost(peer=T, reason="killed"), now=2.0)
    assert cancelled(commands) == {(P, 1)}
    again = resubmitted(commands)
    assert (again.attempt, again.token_ids, again.emitted, again.waited_s) == (2, (1, 2, 3, 100, 101), 2, 2.0)
    assert cancelled(run(sessions, chunk(2, attempt=1))) == {(T, 1)}, "the old attempt is stale"
    run(sessions, placed(2, P2, T2))
    assert run(sessions, chunk(2, peer=P2, attempt=2)) == [Deliver(request_id=R, token_ids=(102,), finish=None)]


def test_prompt_worker_matters_only_until_someone_decodes_without_it() -> None:
    for proof in (handed_off(), chunk(0, peer=T)):
        sessions = new()
        run(sessions, opened(), placed(), chunk(0, peer=P), proof)
        assert run(sessions, Lost(peer=P, reason="killed")) == []
    sessions = new()
    run(sessions, opened(), placed(), chunk(0, peer=P))
    assert resubmitted(run(sessions, Lost(peer=P, reason="killed"))).emitted == 1


def test_token_worker_matters_not_when_the_prompt_worker_decodes_itself() -> None:
    sessions = new()
    run(sessions, opened(), placed(), chunk(0, peer=P), chunk(1, peer=P))
    assert run(sessions, Lost(peer=T, reason="killed")) == []
    assert resubmitted(run(sessions, Lost(peer=P, reason="killed"))).emitted == 2


def test_a_dead_worker_is_avoided_and_its_later_placements_are_refused() -> None:
    sessions = new()
    run(sessions, opened(), placed())
    again = run(sessions, Lost(peer=T, reason="killed"))
    assert resubmitted(again).attempt == 2 and cancelled(again) == {(P, 1)}
    assert resubmitted(again).avoid == (f"w-{T}",)
    commands = run(sessions, placed(2))
    assert cancelled(commands) == {(P, 2)} and not only(commands, Watch), "it is placed on the dead one again"
    assert resubmitted(run(sessions, ev.Woke(), now=1.0)).attempt == 3


def test_placements_on_the_dead_are_no_failures() -> None:
    """Routers learn of a death later than the gateway does: that must not use up the attempts."""
    sessions = new()
    run(sessions, opened(), placed(), chunk(0), Lost(peer=T, reason="killed"))
    now, attempt = 0.0, 2
    while now < 4.0:
        assert cancelled(run(sessions, placed(attempt), now=now)) == {(P, attempt)}
        assert sessions.wake_at is not None
        now = max(now, sessions.wake_at)
        submits = only(run(sessions, ev.Woke(), now=now), Submit)
        attempt = submits[0].message.attempt if submits else attempt
    run(sessions, placed(attempt, P, T2), now=now)
    end = run(sessions, chunk(1, 7, peer=T2, attempt=attempt, finish=Finish.LENGTH), now=now)
    assert end == [Deliver(request_id=R, token_ids=OUTPUT[1:8], finish=Finish.LENGTH)]


def test_a_worker_that_was_only_silent_is_trusted_again() -> None:
    sessions = new()
    worker_id = WorkerId(f"w-{T}")
    run(sessions, opened(), placed(), Lost(peer=T, reason="silent"), heard(worker_id, at=0.1))
    assert not only(run(sessions, placed(2)), Watch), "the report was older than the loss"
    run(sessions, ev.Woke(), now=2.0)
    assert run(sessions, heard(worker_id, at=1.9), placed(3), now=2.0) == [Watch(peer=T)]


def test_attempts_are_limited() -> None:
    sessions = new()
    run(sessions, opened())
    for attempt in range(1, MAX_FAILURES):
        token = Address(f"t{attempt}:1")
        run(sessions, placed(attempt, P, token))
        assert resubmitted(run(sessions, Lost(peer=token, reason="killed"))).attempt == attempt + 1
    run(sessions, placed(MAX_FAILURES))
    (end,) = only(run(sessions, Lost(peer=T, reason="killed")), End)
    assert (end.status, end.code, end.outcome) == (503, "workers_failed", Outcome.FAILED)


def test_loss_after_all_tokens_ends_the_answer() -> None:
    sessions = new()
    run(sessions, opened(max_tokens=2), placed(), chunk(0, 2))
    commands = run(sessions, Lost(peer=T, reason="killed"))
    assert only(commands, Deliver) == [Deliver(request_id=R, token_ids=(), finish=Finish.LENGTH)]
    assert not only(commands, Submit)


def test_failed_retryable_goes_on_after_a_pause_and_other_failures_end() -> None:
    sessions = new()
    run(sessions, opened(), placed())
    assert cancelled(run(sessions, failed(T, retryable=True))) == {(P, 1)}
    assert resubmitted(run(sessions, ev.Woke(), now=1.0)).attempt == 2
    run(sessions, placed(2), now=1.0)
    (end,) = only(run(sessions, failed(P, retryable=False, attempt=2)), End)
    assert (end.status, end.code, end.message) == (500, "no_room", "no room")


def test_client_leaves_in_each_phase() -> None:
    sessions = new()
    run(sessions, opened())
    assert run(sessions, ev.ClientLeft(request_id=R)) == []
    assert cancelled(run(sessions, placed())) == {(P, 1), (T, 1)}, "the placement came later"
    sessions = new()
    assert cancelled(run(sessions, opened(), placed(), ev.ClientLeft(request_id=R))) == {(P, 1), (T, 1)}
    assert cancelled(run(sessions, chunk(0, peer=P))) == {(P, 1)}
    assert run(sessions, ev.ClientLeft(request_id=R)) == []


def test_stop_string_cancels_and_counts_as_completed() -> None:
    sessions = new()
    run(sessions, opened(), placed(), chunk(0, peer=P))
    assert cancelled(run(sessions, ev.StopStringMet(request_id=R))) == {(P, 1), (T, 1)}
    timeline = sessions.timelines.get(R)
    assert timeline and timeline.outcome == "completed"


def test_deadline() -> None:
    sessions = new()
    run(sessions, opened(time_left_s=5.0), placed())
    assert run(sessions, ev.Woke(), now=4.9) == []
    commands = run(sessions, ev.Woke(), now=5.0)
    assert cancelled(commands) == {(P, 1), (T, 1)}
    (end,) = only(commands, End)
    assert (end.status, end.code, end.outcome) == (504, "timeout", Outcome.TIMEOUT)


def test_no_placement_is_a_failure_only_while_the_broker_answers() -> None:
    sessions = new()
    run(sessions, opened())
    assert resubmitted(run(sessions, ev.Woke(), now=PLACEMENT_PATIENCE_S)).attempt == 2
    run(sessions, ev.BrokerSilent(), now=11.0)
    assert run(sessions, ev.Woke(), now=40.0) == []
    run(sessions, ev.BrokerBack(), now=41.0)
    assert run(sessions, ev.Woke(), now=50.9) == []
    assert resubmitted(run(sessions, ev.Woke(), now=51.0)).attempt == 3


def test_a_late_placement_of_an_old_attempt_is_cancelled() -> None:
    sessions = new()
    run(sessions, opened())
    run(sessions, ev.Woke(), now=PLACEMENT_PATIENCE_S)
    assert cancelled(run(sessions, placed(1), now=11.0)) == {(P, 1), (T, 1)}
    assert run(sessions, placed(2, gateway=ServiceId("another"))) == []


def test_unplaceable_is_tried_again_until_the_limit() -> None:
    sessions = new()
    submitted = resubmitted(run(sessions, opened(time_left_s=600)))
    now = 0.0
    ended: list[End] = []
    while not ended:
        refusal = Unplaceable(request_id=R, attempt=submitted.attempt, gateway_id=GATEWAY, reason="all are full")
        ended = only(run(sessions, refusal, now=now), End)
        if not ended:
            assert sessions.wake_at is not None and sessions.wake_at > now
            now = sessions.wake_at
            submits = only(run(sessions, ev.Woke(), now=now), Submit)
            submitted = submits[0].message if submits else submitted
    assert (ended[0].status, ended[0].code) == (503, "no_worker") and now >= UNPLACEABLE_LIMIT_S


def test_broker_refuses() -> None:
    sessions = new()
    run(sessions, opened())
    (end,) = only(run(sessions, ev.SubmitFailed(request_id=R, attempt=1)), End)
    assert (end.status, end.code) == (503, "broker_unavailable") and end.retry_after_s
    sessions = new()
    run(sessions, opened(), placed(), chunk(0), Lost(peer=T, reason="killed"))
    assert run(sessions, ev.SubmitFailed(request_id=R, attempt=2), now=1.0) == [], "a running answer is kept"
    assert resubmitted(run(sessions, ev.Woke(), now=1.5)).attempt == 3
    assert run(sessions, placed(3), ev.SubmitFailed(request_id=R, attempt=3)) == [], "it did get through"


def test_the_same_attempt_placed_twice() -> None:
    sessions = new()
    run(sessions, opened(), placed())
    assert cancelled(run(sessions, placed(1, P2, T))) == {(P2, 1)}


def test_stopping_ends_what_runs() -> None:
    sessions = new()
    (end,) = only(run(sessions, opened(), placed(), ev.Stopping()), End)
    assert (end.status, end.code) == (503, "shutting_down") and len(sessions) == 0


@pytest.mark.parametrize("kept", [3])
def test_finished_timelines_are_forgotten_oldest_first(kept: int) -> None:
    from services.gateway.timeline import Timelines

    timelines = Timelines(kept=kept)
    for number in range(6):
        timeline = timelines.open(RequestId(str(number)), 0.0)
        timeline.outcome = "completed" if number else None
    assert [number for number in range(6) if timelines.get(RequestId(str(number)))] == [0, 4, 5]
