"""The load view and cluster level scheduling."""

import pytest

from shared.ids import EntryId, WorkerId
from shared.policy.routing import place
from shared.policy.view import View
from shared.wire.terms import Role, State
from tests.support.samples import fit, placed, report, submitted


def view_of(*reports: object, now: float = 0.0) -> View:
    view = View()
    for number, message in enumerate(reports):
        view.apply(message, EntryId(f"1-{number}"), now)  # type: ignore[arg-type]
    return view


def choice(view: View, tokens: int = 20, now: float = 0.0) -> tuple[str, str] | str:
    result = place(view, submitted(tokens=tokens), now)
    return result if isinstance(result, str) else (result.prompt.worker_id, result.token.worker_id)


def test_the_shortest_queue_in_tokens_wins_on_both_sides() -> None:
    view = view_of(
        report("p0", queue_tokens=500),
        report("p1", queue_tokens=100),
        report("t0", Role.TOKEN, demand_blocks=10),
        report("t1", Role.TOKEN, demand_blocks=50),
    )
    assert choice(view) == ("p1", "t0")


def test_a_faster_worker_may_have_the_longer_queue() -> None:
    view = view_of(
        report("p0", queue_tokens=300, queue_s=0.1, fit=fit(prefill_ms=1 / 3)),
        report("p1", queue_tokens=200),
        report("t0", Role.TOKEN),
    )
    assert choice(view) == ("p0", "t0")


def test_placements_after_the_report_count_until_a_report_covers_them() -> None:
    view = view_of(report("p0"), report("p1"), report("t0", Role.TOKEN))
    view.apply(placed("a", "p0", "t0"), EntryId("7-0"), 0.0)
    assert choice(view) == ("p1", "t0")
    view.apply(placed("b", "p1", "t0", prompt_tokens=300), EntryId("8-0"), 0.0)
    assert choice(view) == ("p0", "t0")
    view.apply(report("p1", covers=EntryId("8-0")), EntryId("9-0"), 0.0)
    assert choice(view) == ("p1", "t0")


def test_a_foreseen_placement_is_counted_once() -> None:
    view = view_of(report("p0"), report("t0", Role.TOKEN))
    view.foresee(placed("a", "p0", "t0"))
    assert view.workers[WorkerId("p0")].prompt_tokens == 100
    view.apply(placed("a", "p0", "t0"), EntryId("7-0"), 0.0)
    assert view.workers[WorkerId("p0")].prompt_tokens == 100
    view.apply(report("p0", covers=EntryId("7-0")), EntryId("8-0"), 0.0)
    assert view.workers[WorkerId("p0")].prompt_tokens == 0


def test_a_retracted_placement_is_not_counted() -> None:
    view = view_of(report("p0"), report("t0", Role.TOKEN))
    view.foresee(placed("a", "p0", "t0"))
    view.retract(placed("a", "p0", "t0"))
    assert view.workers[WorkerId("p0")].prompt_tokens == 0


def test_a_mixed_worker_does_both_phases() -> None:
    assert choice(view_of(report("m0", Role.MIXED))) == ("m0", "m0")


@pytest.mark.parametrize("left", [Role.PROMPT, Role.TOKEN])
def test_whoever_is_left_does_both_phases(left: Role) -> None:
    assert choice(view_of(report("w", left))) == ("w", "w")


def test_a_request_for_one_token_needs_no_token_worker() -> None:
    view = view_of(report("p0"), report("t0", Role.TOKEN))
    result = place(view, submitted(emitted=7, max_tokens=8), 0.0)
    assert not isinstance(result, str)
    assert (result.prompt.worker_id, result.token.worker_id) == ("p0", "p0")


def test_nobody_there_is_an_answer_not_an_error() -> None:
    assert "no ready worker" in choice(View())
    assert "no ready worker" in choice(view_of(report("p0", state=State.DRAINING)))
    assert "no ready worker" in choice(view_of(report("p0", model="other")))
    assert "no ready worker" in choice(view_of(report("p0", kv_blocks_total=1)), tokens=40)
    assert "no ready worker" in choice(view_of(report("p0", max_model_len=20)), tokens=20)


def test_workers_that_the_gateway_has_just_lost_are_avoided() -> None:
    view = view_of(report("p0"), report("p1"), report("t0", Role.TOKEN))
    result = place(view, submitted(avoid=(WorkerId("p0"), WorkerId("t0"))), 0.0)
    assert not isinstance(result, str)
    assert (result.prompt.worker_id, result.token.worker_id) == ("p1", "p1")


def test_silence_counts_only_while_others_speak() -> None:
    view = view_of(report("p0"), report("p1"))
    assert choice(view, now=100.0) == ("p0", "p0"), "nobody is heard: the broker is in trouble, nobody is out"
    for second in range(1, 7):
        view.apply(report("p1"), EntryId(f"2-{second}"), float(second))
    assert choice(view, now=6.0) == ("p1", "p1")


def test_the_first_report_after_an_outage_makes_nobody_silent() -> None:
    view = view_of(report("p0"), report("p1"), report("t0", Role.TOKEN))
    view.apply(report("p1"), EntryId("2-0"), 60.0)
    assert choice(view, now=60.0) == ("p0", "t0")
    for second in range(1, 7):
        view.apply(report("p1"), EntryId(f"3-{second}"), 60.0 + second)
    assert choice(view, now=66.0) == ("p1", "p1"), "the others had six seconds to speak"


def test_a_foreseen_placement_goes_when_its_covered_entry_is_read() -> None:
    view = view_of(report("p0"), report("t0", Role.TOKEN))
    view.foresee(placed("a", "p0", "t0"))
    view.apply(report("p0", covers=EntryId("7-0")), EntryId("8-0"), 0.0)
    view.apply(placed("a", "p0", "t0"), EntryId("7-0"), 0.0)
    assert view.workers[WorkerId("p0")].prompt_tokens == 0
