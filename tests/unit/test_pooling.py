"""The slow loop: home roles follow the load, soon, all the way, and not for nothing."""

from dataclasses import replace

import pytest

from shared.ids import EntryId, WorkerId
from shared.policy.pooling import Pooling, PoolingLimits, RoleMove
from shared.policy.view import View
from shared.wire.reports import RoleChanged, WorkerReport
from shared.wire.terms import Role, State
from tests.support.pools import CHAT_LIKE, CODE_LIKE, PretendedPools, Shape
from tests.support.samples import placed, report

ENTRY = EntryId("1-0")


class Mesh:
    """A view and its slow loop, fed by hand. `obeys`: reports name the new home after a move."""

    def __init__(self, *reports: WorkerReport, obeys: bool = True) -> None:
        self.obeys = obeys
        self.view = View()
        self.pooling = Pooling(self.view, PoolingLimits(first_s=0.0))
        self.now = 0.0
        self.reports = {r.worker_id: r for r in reports}
        self.hear(*reports)

    def hear(self, *reports: WorkerReport) -> None:
        for one in reports:
            self.reports[one.worker_id] = one
            self.view.apply(one, ENTRY, self.now)

    def ask(self, seconds: float, *, prompt_tokens: int, output_tokens: int, per_s: int = 50) -> list[RoleMove]:
        """So many seconds of a load, with reports of which only the role changes; all that was decided."""
        moves: list[RoleMove] = []
        for _ in range(round(seconds)):
            for number in range(per_s):
                message = placed(
                    f"{self.now}-{number}", "p0", "t0", prompt_tokens=prompt_tokens, output_tokens=output_tokens
                )
                self.pooling.apply(message, ENTRY, self.now + number / per_s)
            self.now += 1.0
            self.hear(*self.reports.values())
            decided = self.pooling.decide(self.now)
            self.pooling.check()
            if self.obeys:
                self.hear(*(replace(self.reports[m.worker_id], role=m.role, pool=m.role) for m in decided))
            moves += decided
        return moves

    def prompts(self, seconds: float, per_s: int = 50) -> list[RoleMove]:
        return self.ask(seconds, prompt_tokens=100, output_tokens=2, per_s=per_s)

    def decodes(self, seconds: float, per_s: int = 500) -> list[RoleMove]:
        return self.ask(seconds, prompt_tokens=2, output_tokens=200, per_s=per_s)


def pools(prompt: int, token: int, **fields: object) -> list[WorkerReport]:
    homes = [(f"p{i}", Role.PROMPT) for i in range(prompt)] + [(f"t{i}", Role.TOKEN) for i in range(token)]
    return [report(name, home, kv_blocks_total=10_000, **fields) for name, home in homes]


def ids(moves: list[RoleMove]) -> list[str]:
    return [move.worker_id for move in moves]


# ---- following ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_roles_follow_the_load_there_and_back_within_seconds(seed: int) -> None:
    mesh = PretendedPools(4, 4, seed=seed)
    for _ in range(2):
        assert mesh.run(CODE_LIKE, 13).split[0] >= 6
        assert mesh.run(CODE_LIKE, 15).split[0] >= 6
        assert mesh.run(CHAT_LIKE, 13).split[1] >= 4
        assert mesh.run(CHAT_LIKE, 15).split[1] in (4, 5)


def test_slow_workers_count_for_what_they_can_do() -> None:
    """The same load on workers of half the speed, but with twice as many of them, is split alike."""
    slow = PretendedPools(8, 8, speeds=(0.5,)).run(CODE_LIKE, 40).split
    uneven = PretendedPools(6, 6, speeds=(1.0, 0.5, 0.5)).run(CODE_LIKE, 40).split
    assert slow[0] in (12, 13, 14) and uneven[0] in (9, 10)


@pytest.mark.parametrize("shape", [CODE_LIKE, CHAT_LIKE], ids=["code", "chat"])
@pytest.mark.parametrize("seed", range(3))
def test_a_steady_load_moves_nobody_once_the_split_is_right(seed: int, shape: Shape) -> None:
    mesh = PretendedPools(4, 4, seed=seed).run(shape, 40)
    before = len(mesh.moves)
    mesh.run(shape, 160)
    assert len(mesh.moves) - before <= 1, [(at, move.reason) for at, move in mesh.moves[before:]]


def test_a_large_mesh_goes_all_the_way_some_at_a_time() -> None:
    mesh = Mesh(*pools(20, 20), obeys=False)
    assert mesh.prompts(2, per_s=200) == [], "it must have been so for a while"
    first = mesh.prompts(1, per_s=200)
    assert len(first) == 4 and {move.role for move in first} == {Role.PROMPT}
    later = mesh.prompts(1, per_s=200)
    assert len(later) == 4
    assert len(set(ids(first + later))) == len(first + later), "told workers count as moved before they report it"


def test_every_move_says_why_in_one_line_with_the_numbers() -> None:
    mesh = Mesh(*pools(4, 4))
    (move, *_) = mesh.prompts(4)
    assert "\n" not in move.reason
    for text in ("prompt pool at ", "token pool at ", "requests/s of 100 + 2 tokens", "4 + 4 workers become 7 + 1"):
        assert text in move.reason


def test_a_backlog_counts_although_nothing_new_arrives() -> None:
    busy = {"queue_tokens": 9000, "queue_s": 9.0}
    mesh = Mesh(*pools(2, 6))
    mesh.ask(1, prompt_tokens=100, output_tokens=2, per_s=5)
    mesh.hear(*(report(f"p{i}", kv_blocks_total=10_000, **busy) for i in range(2)))
    moves = mesh.ask(4, prompt_tokens=100, output_tokens=2, per_s=5)
    assert moves and {move.role for move in moves} == {Role.PROMPT}


def test_what_decodes_counts_although_nothing_new_arrives() -> None:
    mesh = Mesh(*pools(6, 2))
    mesh.ask(1, prompt_tokens=20, output_tokens=20, per_s=10)
    full = {"decodes": 60, "demand_blocks": 10_000, "kv_blocks_total": 10_000}
    mesh.hear(*(report(f"t{i}", Role.TOKEN, **full) for i in range(2)))
    moves = mesh.ask(4, prompt_tokens=20, output_tokens=20, per_s=10)
    assert moves and {move.role for move in moves} == {Role.TOKEN}


def test_answers_are_expected_to_be_as_long_as_lately_not_as_long_as_allowed() -> None:
    def wanted(expected: float) -> set[Role]:
        mesh = Mesh(*pools(4, 4, expected_output_tokens=expected))
        return {move.role for move in mesh.ask(5, prompt_tokens=20, output_tokens=100_000)}

    assert wanted(5.0) == {Role.PROMPT}
    assert wanted(2000.0) == {Role.TOKEN}


# ---- not for nothing ------------------------------------------------------------------------------------------------


def test_one_huge_prompt_is_no_shift() -> None:
    mesh = Mesh(*pools(4, 4))
    mesh.pooling.apply(placed("huge", "p0", "t0", prompt_tokens=900), ENTRY, 0.0)
    mesh.hear(report("p0", queue_tokens=900, queue_s=0.9, kv_blocks_total=10_000))
    assert mesh.ask(5, prompt_tokens=1, output_tokens=1, per_s=0) == []


def test_a_shift_that_passes_moves_nobody() -> None:
    mesh = Mesh(*pools(4, 4))
    assert mesh.prompts(2) + mesh.decodes(1, per_s=3000) == []
    assert {move.role for move in mesh.decodes(5)} == {Role.TOKEN}, "this one does not pass"


def test_pools_with_little_to_do_stay_as_they_are() -> None:
    mesh = Mesh(*pools(4, 4))
    assert mesh.ask(20, prompt_tokens=100, output_tokens=2, per_s=2) == []


def test_one_and_one_never_move() -> None:
    mesh = Mesh(*pools(1, 1))
    assert mesh.prompts(10) + mesh.decodes(10) == []


def test_the_last_worker_of_a_pool_stays() -> None:
    mesh = Mesh(*pools(2, 2))
    assert len(mesh.prompts(10)) == 1


def test_nobody_goes_back_soon_unless_it_clearly_pays() -> None:
    def returning(limits: PoolingLimits) -> list[RoleMove]:
        view = View()
        pooling = Pooling(view, limits)
        for one in pools(3, 1, expected_output_tokens=5000.0):
            view.apply(one, ENTRY, 0.0)
        for name in ("p0", "p1", "p2"):
            pooling.apply(
                RoleChanged(worker_id=WorkerId(name), was=Role.TOKEN, role=Role.PROMPT, reason=""), ENTRY, 0.0
            )
        moves = []
        for second in range(1, 5):
            for number in range(50):
                message = placed(f"{second}-{number}", "p0", "t0", prompt_tokens=2, output_tokens=5000)
                pooling.apply(message, ENTRY, float(second))
            moves += pooling.decide(float(second))
        return moves

    assert returning(PoolingLimits(first_s=0.0, clear_gain=1e9)) == []
    assert returning(PoolingLimits(first_s=0.0)) != []


# ---- who ------------------------------------------------------------------------------------------------------------


def test_who_was_borrowed_moves_first_then_who_has_least_to_do() -> None:
    mesh = Mesh(*pools(2, 0), *(
        report("busy", Role.TOKEN, decodes=4, demand_blocks=40, kv_blocks_total=10_000),
        report("calm", Role.TOKEN, decodes=1, demand_blocks=4, kv_blocks_total=10_000),
        report("lent", Role.TOKEN, decodes=9, demand_blocks=90, queue_tokens=5, queue_s=0.01, kv_blocks_total=10_000),
        report("most", Role.TOKEN, decodes=7, demand_blocks=70, kv_blocks_total=10_000),
    ))  # fmt: skip
    assert ids(mesh.prompts(9)) == ["lent", "calm", "busy"]


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING, State.LOST])
def test_who_is_not_ready_is_left_alone_and_not_counted_on(state: State) -> None:
    away = [report(f"t{i}", Role.TOKEN, state=state) for i in range(1, 4)]
    assert Mesh(report("p0"), report("t0", Role.TOKEN), *away).prompts(10) == []


def test_mixed_homes_are_left_alone() -> None:
    mixed = [report(f"m{i}", Role.MIXED) for i in range(3)]
    assert Mesh(report("p0"), report("t0", Role.TOKEN), *mixed).prompts(10) == []


def test_pinned_workers_are_left_alone() -> None:
    pinned = [report(f"t{i}", Role.TOKEN, role_pinned=True) for i in range(1, 4)]
    assert ids(Mesh(report("p0"), report("t0", Role.TOKEN), *pinned).prompts(10)) == ["t0"]


def test_a_pinned_worker_counts_for_its_pool() -> None:
    free = Mesh(*pools(1, 7))
    pinned = Mesh(*pools(1, 7), *(report(f"q{i}", role_pinned=True, kv_blocks_total=10_000) for i in range(24)))
    assert len(free.prompts(9)) == 6
    assert pinned.prompts(9) == [], "25 workers are hardly busy"


def test_a_silent_worker_is_not_counted_on() -> None:
    mesh = Mesh(*pools(3, 3))
    for second in range(1, 8):
        mesh.now = float(second)
        for one in pools(3, 3)[:5]:
            mesh.view.apply(one, ENTRY, mesh.now)
    del mesh.reports[WorkerId("t2")]
    assert "t2" not in ids(mesh.prompts(9))


def test_models_have_pools_of_their_own() -> None:
    mesh = Mesh(*pools(4, 4), *(report(f"m{i}", Role.TOKEN, model="other") for i in range(4)))
    moves = mesh.prompts(9)
    assert moves and all(name.startswith("t") for name in ids(moves))


def test_a_move_that_nobody_confirms_is_ordered_again() -> None:
    mesh = Mesh(*pools(1, 2), obeys=False)
    assert ids(mesh.prompts(4)) == ["t0"]
    assert mesh.prompts(1) == [], "it may still be on its way"
    assert mesh.prompts(4) != []


# ---- repair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [Role.PROMPT, Role.TOKEN])
def test_a_pool_without_workers_gets_one_at_once(lost: Role) -> None:
    mesh = Mesh(*(pools(1, 3) if lost is Role.PROMPT else pools(3, 1)))
    mesh.hear(report("p0" if lost is Role.PROMPT else "t0", lost, state=State.LOST))
    (move,) = mesh.pooling.decide(0.1)
    assert move.role is lost and f"the {lost.value} pool lost its last worker" in move.reason
    assert mesh.pooling.decide(0.2) == [], "one is on its way"


def test_a_mesh_that_is_still_starting_is_not_repaired() -> None:
    mesh = Mesh(*pools(4, 0))
    assert mesh.pooling.decide(0.0) == []


def test_mixed_homes_make_repair_needless_and_the_last_worker_stays() -> None:
    mixed = Mesh(*pools(2, 1), report("m0", Role.MIXED))
    last = Mesh(*pools(1, 1))
    for mesh in (mixed, last):
        mesh.pooling.decide(0.0)
        mesh.hear(report("t0", Role.TOKEN, state=State.LOST))
        assert mesh.pooling.decide(0.1) == []


def test_nobody_moves_on_a_guess_of_how_long_answers_get() -> None:
    def moves(bounds_used: float) -> bool:
        mesh = Mesh(*pools(4, 4, bounds_used=bounds_used))
        return bool(mesh.prompts(10))

    assert moves(0.5) and not moves(0.0)
