"""The slow loop under any load, and its parts: what a mix of requests costs, and which way leads to the best split."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ids import EntryId
from shared.policy.pooling import Pooling
from shared.policy.sides import Member, Side, way
from shared.policy.traffic import FOLD_S, Traffic
from shared.policy.view import View
from shared.policy.worker_kind import WorkerKind
from shared.policy.worker_view import WorkerView
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role, State
from tests.support.samples import placed, report

WORKERS = 6
births = st.tuples(st.sampled_from(list(Role)), st.booleans(), st.sampled_from("aab"))
states = st.sampled_from([State.READY] * 5 + [State.DRAINING, State.LOST])
loads = st.tuples(states, st.sampled_from([0, 100, 9000]), st.integers(0, 80))
seconds = st.tuples(
    st.lists(loads, min_size=WORKERS, max_size=WORKERS), st.sampled_from([10, 2000]), st.sampled_from([2, 300])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(births, min_size=WORKERS, max_size=WORKERS), st.lists(seconds, min_size=4, max_size=15))
def test_whatever_happens_it_moves_only_whom_it_may(
    born: list[tuple[Role, bool, str]], story: list[tuple[list[tuple[State, int, int]], int, int]]
) -> None:
    """Never the pinned, the mixed, those who are not ready, or the last of a pool; one of a model at a time, so few."""
    view = View()
    pooling = Pooling(view)
    homes = [role for role, _, _ in born]
    for now, (workers, prompt_tokens, output_tokens) in enumerate(story, start=1):
        reports: dict[str, WorkerReport] = {}
        for i, (state, queue, decodes) in enumerate(workers):
            _, pinned, model = born[i]
            reports[f"w{i}"] = report(
                f"w{i}", homes[i], role_pinned=pinned, model=model, state=state, queue_tokens=queue,
                queue_s=queue / 1000, decodes=decodes, demand_blocks=20 * decodes, kv_blocks_total=1000,
            )  # fmt: skip
            view.apply(reports[f"w{i}"], EntryId("1-0"), float(now))
        for number in range(20):
            shape = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
            message = placed(f"{now}-{number}", f"w{number % 6}", f"w{(number + 3) % 6}", **shape)
            pooling.apply(message, EntryId("1-0"), float(now))
        moves = pooling.decide(float(now))
        pooling.check()
        assert len({reports[move.worker_id].model for move in moves}) == len(moves)
        for move in moves:
            moved = reports[move.worker_id]
            assert moved.state is State.READY and not moved.role_pinned
            assert {moved.role, move.role} == {Role.PROMPT, Role.TOKEN}
            pool = [r for r in reports.values() if (r.model, r.role, r.state) == (moved.model, moved.role, State.READY)]
            assert len(pool) > 1, "the last of its pool"
            homes[int(move.worker_id.removeprefix("w"))] = move.role


rates = st.floats(0.1, 10.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(rates, rates), min_size=2, max_size=8), st.integers(1, 7), rates, rates)
def test_the_way_ends_where_no_next_move_helps(
    workers: list[tuple[float, float]], prompts: int, first: float, second: float
) -> None:
    members = [Member(WorkerView(report(f"w{i}"), i), *pair) for i, pair in enumerate(workers)]
    prompts = min(prompts, len(members) - 1)
    pools = {Role.PROMPT: members[:prompts], Role.TOKEN: members[prompts:]}
    sides = [
        Side(role, len(pools[role]), demand, sum(m.rate(role) for m in pools[role]))
        for role, demand in ((Role.PROMPT, first), (Role.TOKEN, second))
    ]
    idler, busier = sorted(sides, key=lambda side: side.utilisation)
    before = busier.utilisation
    movers, gain = way(idler, busier, pools[idler.role])
    assert len(movers) < idler.workers
    after = _after(idler, busier, movers)
    assert math.isclose(before / after, gain, rel_tol=1e-9) and gain >= 1
    left = [m for m in sorted(pools[idler.role], key=lambda m: m.worker.worker_id) if m not in movers]
    if len(left) > 1:
        assert _after(idler, busier, [*movers, left[0]]) >= after * (1 - 1e-9)


def _after(idler: Side, busier: Side, movers: list[Member]) -> float:
    gained = busier.capacity + sum(m.rate(busier.role) for m in movers)
    left = idler.capacity - sum(m.rate(idler.role) for m in movers)
    return max(busier.demand / gained, idler.demand / left)


lengths = st.tuples(st.floats(FOLD_S, 3.0), st.integers(1, 5000), st.integers(0, 500))


@settings(max_examples=50, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=30))
def test_the_mix_is_the_mean_of_recent_requests(requests: list[tuple[float, int, int]]) -> None:
    traffic, now, seen = Traffic(5.0), 0.0, []
    for gap_s, prompt, steps in requests:
        now += gap_s
        traffic.add(prompt, steps, now)
        traffic.check()
        seen.append((now, prompt, steps))
    mix = traffic.mix(now)
    assert mix is not None
    weights = [math.exp((at - now) / 5.0) for at, _, _ in seen]
    total = sum(weights)
    listened_s = 5.0 * (1 - math.exp((seen[0][0] - now) / 5.0))
    assert math.isclose(mix.requests_per_s, total / max(1.0, listened_s), rel_tol=1e-6)
    for value, expected in (
        (mix.prompt_tokens, sum(w * p for w, (_, p, _) in zip(weights, seen, strict=True)) / total),
        (mix.prompt_squares, sum(w * p * p for w, (_, p, _) in zip(weights, seen, strict=True)) / total),
        (mix.decode_steps, sum(w * s for w, (_, _, s) in zip(weights, seen, strict=True)) / total),
    ):
        assert math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)


def test_what_a_request_costs_is_bound_by_memory_by_seats_or_by_the_step_target() -> None:
    traffic = Traffic(5.0)
    for _ in range(10):
        traffic.add(1000, 100, 0.0)
    mix = traffic.mix(0.0)
    assert mix is not None
    assert math.isclose(mix.prefill_s(WorkerKind.of(report("p"))), 1.0), "1 ms a token, alone"
    in_time = WorkerKind.of(report("t", kv_blocks_total=1_000_000, step_target_s=0.04))
    batch = 0.03 / (0.001 * 1050 + 0.1) * 1000
    assert math.isclose(mix.decode_s(in_time), 100 * 0.04 / batch, rel_tol=1e-9)
    assert math.isclose(in_time.occupied(13, 13 * 1050 // 16), 0.5, rel_tol=0.01), "half of a full batch, half full"
    for kv_blocks_total, max_num_seqs, batch in ((690, 64, 0.85 * 690 / 69), (1_000_000, 4, 4), (1, 1, 1)):
        limits = {"kv_blocks_total": kv_blocks_total, "max_num_seqs": max_num_seqs}
        kind = WorkerKind.of(report("t", step_target_s=10.0, **limits))
        step_s = (10.0 + batch * (0.001 * 1050 + 0.1)) / 1000
        assert math.isclose(mix.decode_s(kind), 100 * step_s / batch, rel_tol=1e-9)
    seats = WorkerKind.of(report("t", kv_blocks_total=1_000_000, step_target_s=10.0, max_num_seqs=4))
    assert seats.occupied(3, 200) == 0.75
