"""Where work goes when its own pool is busy: mixed workers, then the other pool, then both phases on one worker."""

from shared.ids import EntryId, WorkerId
from shared.policy.routing import DEFAULT_LIMITS, Limits, Placement, place
from shared.policy.view import View
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role
from tests.support.samples import fit, placed, report, submitted

BUSY = {"queue_tokens": 9000, "queue_s": 9.0}  # beyond 8,192 tokens, and 1.5 s
BIG = {"kv_blocks_total": 10_000, "max_model_len": 100_000}


def chosen(
    *reports: WorkerReport, tokens: int = 20, limits: Limits = DEFAULT_LIMITS, **fields: object
) -> tuple[str, str]:
    view = View()
    for number, one in enumerate(reports):
        view.apply(one, EntryId(f"1-{number}"), 0.0)
    result = place(view, submitted(tokens=tokens, max_tokens=200, **fields), 0.0, limits)
    assert isinstance(result, Placement), result
    return result.prompt.worker_id, result.token.worker_id


def prompt(name: str, **fields: object) -> WorkerReport:
    return report(name, Role.PROMPT, **BIG | fields)


def token(name: str, **fields: object) -> WorkerReport:
    return report(name, Role.TOKEN, **BIG | fields)


LENT = {"decodes": 1, "demand_blocks": 10}  # of a prompt worker: it decodes for somebody


def test_prompts_stay_in_their_pool_while_its_queue_is_short() -> None:
    assert chosen(prompt("p0", queue_tokens=1400), prompt("p1", **LENT), token("t0")) == ("p0", "t0")


def test_a_busy_prompt_pool_overflows_to_mixed_workers_first() -> None:
    assert chosen(prompt("p0", **BUSY), prompt("p1", **LENT), token("t0")) == ("p1", "t0")


def test_then_a_token_worker_is_borrowed() -> None:
    assert chosen(prompt("p0", **BUSY), prompt("p1", **BUSY | LENT), token("t0"), token("t1")) == ("t0", "t1")


def test_the_only_token_worker_does_both_phases_when_it_is_borrowed() -> None:
    assert chosen(prompt("p0", **BUSY), token("t0")) == ("t0", "t0")


def test_when_all_are_busy_the_shortest_queue_counts() -> None:
    more = {"queue_tokens": 9500, "queue_s": 9.5}
    assert chosen(prompt("p0", **more), prompt("p1", **BUSY), token("t0", **more))[0] == "p1"


def test_a_promised_ttft_makes_pools_overflow_earlier() -> None:
    workers = prompt("p0", queue_tokens=1400), token("t0")
    assert chosen(*workers)[0] == "p0"
    assert chosen(*workers, limits=Limits(ttft_target_s=2.0))[0] == "t0", "1.4 s is more than half of it"


def test_few_tokens_are_too_many_where_they_take_long() -> None:
    slow, fast = prompt("p0", queue_tokens=1600), prompt("p0", queue_tokens=5000, queue_s=0.5, fit=fit(0.1))
    assert chosen(slow, token("t0"))[0] == "t0", "1.6 s"
    assert chosen(fast, token("t0"))[0] == "p0", "0.5 s"
    assert chosen(fast, token("t0"), limits=Limits(overflow_tokens=4096))[0] == "t0"


def test_without_borrowing_each_phase_stays_in_its_pool() -> None:
    alone = Limits(borrow=False)
    assert chosen(prompt("p0", **BUSY), token("t0"), limits=alone) == ("p0", "t0")
    assert chosen(prompt("p0"), token("t0", demand_blocks=9_995, decodes=50), limits=alone) == ("p0", "t0")
    assert chosen(token("t0"), limits=alone) == ("t0", "t0"), "nobody is left in the prompt pool"


def test_decodes_go_where_there_is_room_for_what_is_expected_of_them() -> None:
    full = token("t0", demand_blocks=9_995, decodes=50)
    assert chosen(prompt("p0"), full, token("t1", demand_blocks=9_000, decodes=59)) == ("p0", "t1")
    assert chosen(prompt("p0"), full, prompt("p1", **LENT)) == ("p0", "p1"), "mixed before opposite"
    assert chosen(prompt("p0"), full) == ("p0", "p0")


def test_a_token_pool_that_is_too_slow_yields_to_who_is_faster() -> None:
    slow = token("t0", decodes=60, demand_blocks=100, fit=fit(decode_ms=(10.0, 0.0, 100.0)))
    assert chosen(prompt("p0"), slow) == ("p0", "p0")
    assert chosen(prompt("p0", queue_tokens=10), slow) == ("p0", "p0")


def test_token_workers_are_compared_by_the_time_between_tokens_that_they_lead_to() -> None:
    fast = token("t0", decodes=20, demand_blocks=40, fit=fit(decode_ms=(10.0, 0.0, 0.1)))
    slow = token("t1", decodes=2, demand_blocks=4, fit=fit(decode_ms=(10.0, 0.0, 2.0)))
    assert chosen(prompt("p0"), fast, slow) == ("p0", "t0")


def test_a_short_answer_stays_when_moving_it_would_cost_more() -> None:
    slow_link = {"transport_bandwidth_gb_s": 0.1, "kv_bytes_per_token": 100_000, "layers": 4, "push_threshold": 0}
    workers = prompt("p0", **slow_link), token("t0")
    assert chosen(*workers, tokens=1000) == ("p0", "t0"), "200 tokens would take 2 s of the prompt worker"
    brief = submitted(tokens=1000, max_tokens=3)
    view = View()
    for number, one in enumerate(workers):
        view.apply(one, EntryId(f"1-{number}"), 0.0)
    result = place(view, brief, 0.0)
    assert isinstance(result, Placement) and result.token.worker_id == "p0"


def test_a_borrowed_worker_is_home_again_as_soon_as_it_has_no_foreign_work() -> None:
    view = View()
    view.apply(token("t0"), EntryId("1-0"), 0.0)
    worker = view.workers[WorkerId("t0")]
    view.apply(placed("a", "t0", "t0"), EntryId("2-0"), 0.0)
    assert worker.pool is Role.MIXED
    view.apply(token("t0", decodes=1, demand_blocks=8, covers=EntryId("2-0")), EntryId("3-0"), 0.1)
    assert worker.pool is Role.TOKEN, "the prompt is done, the decode runs on"


def test_how_long_answers_get_is_known_where_they_end() -> None:
    slow_link = {"transport_bandwidth_gb_s": 0.1, "kv_bytes_per_token": 100_000, "layers": 4, "push_threshold": 0}
    unlearned, learned = {"bounds_used": 0.0}, {"expected_output_tokens": 4.0, "bounds_used": 0.1}
    brief = chosen(prompt("p0", **slow_link, **unlearned), token("t0", **learned), tokens=1000)
    assert brief == ("p0", "p0"), "three more tokens are expected, whatever the bound"
    assert chosen(prompt("p0", **slow_link, **unlearned), token("t0"), tokens=1000) == ("p0", "t0")


def test_fixed_pools_move_every_prompt() -> None:
    slow_link = {"transport_bandwidth_gb_s": 0.1, "kv_bytes_per_token": 100_000, "layers": 4, "push_threshold": 0}
    workers = prompt("p0", **slow_link), token("t0", expected_output_tokens=4.0, bounds_used=0.1)
    assert chosen(*workers, tokens=1000) == ("p0", "p0")
    assert chosen(*workers, tokens=1000, limits=Limits(borrow=False)) == ("p0", "t0")
