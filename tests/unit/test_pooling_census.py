"""The sums of the slow loop under any story of reports, placements, moves and silences equal a full count."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shared.ids import EntryId, WorkerId
from shared.policy import pooling as pooling_module
from shared.policy.census import BILLION, Census
from shared.policy.pooling import Pooling
from shared.policy.view import View
from shared.policy.worker_kind import KV_SHARE
from shared.wire.messages import Placed
from shared.wire.terms import Role, State
from tests.support.samples import fit, placed, report

FITS = (fit(1.0), fit(0.5, (5.0, 0.0, 0.1)))
NAMES = [f"w{i}" for i in range(5)]
names, roles = st.sampled_from(NAMES), st.sampled_from(list(Role))
states = st.sampled_from([State.READY] * 5 + [State.DRAINING, State.LOST])

Sums = dict[tuple[str, Role, object], tuple[int, int, int, int]]


def _full_count(view: View, told: dict[WorkerId, Role]) -> Sums:
    found: Sums = {}
    for worker_id, worker in view.workers.items():
        reported = worker.report
        if reported.state is not State.READY or view.out_of_sight(worker):
            continue
        a, b, c = reported.fit.costs.decode_ms
        step_s = (b * worker.demand_blocks * reported.block_size + c * worker.decodes) / 1000
        room_s = reported.step_target_s - a / 1000
        shares = step_s / room_s, worker.demand_blocks / (KV_SHARE * reported.kv_blocks_total), worker.decodes / 64
        key = reported.model, told.get(worker_id, reported.role), reported.fit.costs.decode_ms
        workers, queue_ns, decodes, occupied = found.get(key, (0, 0, 0, 0))
        occupied += int(max(shares) * BILLION)
        found[key] = workers + 1, queue_ns + int(worker.queue_s * BILLION), decodes + worker.decodes, occupied
    return found


class AnyStory(RuleBasedStateMachine):
    @initialize(silent_s=st.sampled_from([1.5, float("inf")]))
    def begin(self, silent_s: float) -> None:
        self.view = View(silent_s=silent_s)
        self.census = Census(self.view)
        self.told: dict[WorkerId, Role] = {}
        self.foreseen: list[Placed] = []
        self.now, self.entries = 0.0, 0
        for name in NAMES:
            self.view.apply(report(name), EntryId("1-0"), self.now)

    @rule(name=names, role=roles, state=states, model=st.sampled_from("aab"), speed=st.sampled_from(FITS),
          queue=st.sampled_from([0, 100, 9000]), decodes=st.integers(0, 80), behind=st.integers(0, 3))  # fmt: skip
    def report(
        self, name: str, role: Role, state: State, model: str, speed: object, queue: int, decodes: int, behind: int
    ) -> None:
        covers = EntryId(f"1-{max(0, self.entries - behind)}")
        message = report(
            name, role, state=state, model=model, fit=speed, queue_tokens=queue, decodes=decodes,
            demand_blocks=3 * decodes, covers=covers,
        )  # fmt: skip
        self.view.apply(message, covers, self.now)

    @rule(prompt=names, token=names, tokens=st.integers(1, 900), foresee=st.booleans())
    def place(self, prompt: str, token: str, tokens: int, foresee: bool) -> None:
        self.entries += 1
        message = placed(f"r{self.entries}", prompt, token, prompt_tokens=tokens)
        if foresee:
            self.view.foresee(message)
            self.foreseen.append(message)
        else:
            self.view.apply(message, EntryId(f"1-{self.entries}"), self.now)

    @rule()
    def retract(self) -> None:
        if self.foreseen:
            self.view.retract(self.foreseen.pop())

    @rule(told=st.dictionaries(names.map(WorkerId), roles, max_size=2))
    def tell(self, told: dict[WorkerId, Role]) -> None:
        self.told = told
        self.count()

    @rule(seconds=st.sampled_from([1.0, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        """Whoever is not heard for long is forgotten; a worker that is always heard keeps it from being an outage."""
        for _ in range(round(seconds)):
            self.now += 1.0
            self.view.apply(report("heard"), EntryId("1-0"), self.now)
        self.view.forget(self.now)

    @rule()
    def count(self) -> None:
        self.view.check()
        self.census.update(dict(self.told))
        self.census.check()
        expected = _full_count(self.view, self.told)
        found: Sums = {
            (group.model, group.home, group.kind.decode_ms): (
                group.workers, group.queue_ns, group.decodes, group.occupied_ppb,
            )
            for groups in self.census.by_model().values()
            for group in groups
        }  # fmt: skip
        assert found.keys() == expected.keys()
        for key, (*sums, occupied_ppb) in found.items():
            *expected_sums, expected_ppb = expected[key]
            assert sums == expected_sums
            assert occupied_ppb == pytest.approx(expected_ppb, abs=len(NAMES) + 1), "each is rounded down"
        for model, home in {(model, home) for model, home, _ in expected}:
            ids = {worker.worker_id for worker, _ in self.census.movable(model, home)}
            assert len(ids) == sum(sums[0] for key, sums in expected.items() if key[:2] == (model, home))

    def teardown(self) -> None:
        if hasattr(self, "census"):
            self.count()


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def _placed_often(pooling: Pooling, per_s: int, now: float) -> None:
    for number in range(per_s):
        pooling.apply(placed(str(number), "p0", "t0", output_tokens=1), EntryId("1-0"), now)


def test_only_who_changed_is_looked_at_and_nobody_one_by_one_while_little_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visited = {"changed": 0, "one by one": 0}

    class Watched(Census):
        def _count(self, worker):  # type: ignore[no-untyped-def]
            visited["changed"] += 1
            super()._count(worker)

        def movable(self, model, home):  # type: ignore[no-untyped-def]
            visited["one by one"] += 1
            return super().movable(model, home)

    monkeypatch.setattr(pooling_module, "Census", Watched)
    view = View(silent_s=float("inf"))
    pooling = Pooling(view)
    reports = [report(f"{role.value[0]}{i}", role) for role in (Role.PROMPT, Role.TOKEN) for i in range(50)]
    for one in reports:
        view.apply(one, EntryId("1-0"), 0.0)
    for second in range(10):
        _placed_often(pooling, 10, float(second))
        view.apply(reports[7], EntryId("1-0"), float(second))
        assert pooling.decide(float(second)) == []
    assert visited == {"changed": 100 + 9, "one by one": 0}
    _placed_often(pooling, 10_000, 10.0)
    pooling.decide(10.0)
    assert visited["one by one"] == 1
