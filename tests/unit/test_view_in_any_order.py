"""The load view under any interleaving of placements, reports and crashes of routers; and several routers at once."""

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared.ids import EntryId, RequestId, WorkerId
from shared.policy.routing import Placement, place
from shared.policy.view import View
from shared.wire.messages import Placed
from shared.wire.terms import Role
from tests.support.samples import placed, report, submitted

NAMES = ("p0", "p1", "t0", "t1")
ROLES = (Role.PROMPT, Role.PROMPT, Role.TOKEN, Role.TOKEN)


class TwoViewsOfOneStream(RuleBasedStateMachine):
    """Two routers place in turn and read the stream at their own pace; a model knows what was really placed."""

    def __init__(self) -> None:
        super().__init__()
        self.views = [View(), View(salt="b")]
        self.read = [0, 0]
        self.stream: list[object] = []
        self.tokens = dict.fromkeys(NAMES, 0)
        self.pending: list[tuple[int, Placed]] = []
        for name, role in zip(NAMES, ROLES, strict=True):
            self.stream.append(report(name, role, kv_blocks_total=10_000))
        self.number = 0

    @rule(router=st.integers(0, 1), tokens=st.integers(1, 900))
    def place_one(self, router: int, tokens: int) -> None:
        self.catch_up(router)
        self.number += 1
        choice = place(self.views[router], submitted(str(self.number), tokens), 0.0)
        assert isinstance(choice, Placement)
        message = placed(str(self.number), choice.prompt.worker_id, choice.token.worker_id, prompt_tokens=tokens)
        self.views[router].foresee(message)
        self.pending.append((router, message))

    @rule(success=st.booleans())
    def forward(self, success: bool) -> None:
        """What was foreseen is published, or was not after all."""
        if self.pending:
            router, message = self.pending.pop(0)
            if success:
                self.stream.append(message)
                self.tokens[message.prompt_worker] += message.prompt_tokens
            else:
                self.views[router].retract(message)

    @rule(worker=st.integers(0, 3))
    def say(self, worker: int) -> None:
        """A worker reports what it has: all that was placed on it so far."""
        name = NAMES[worker]
        covers = EntryId(f"1-{len(self.stream)}")
        tokens = self.tokens[name]
        self.stream.append(report(name, ROLES[worker], queue_tokens=tokens, covers=covers, kv_blocks_total=10_000))

    @rule(router=st.integers(0, 1))
    def catch_up(self, router: int) -> None:
        for number in range(self.read[router], len(self.stream)):
            self.views[router].apply(self.stream[number], EntryId(f"1-{number + 1}"), 0.0)  # type: ignore[arg-type]
        self.read[router] = len(self.stream)

    @invariant()
    def in_order(self) -> None:
        for view in self.views:
            view.check()

    @invariant()
    def load_is_the_sum_of_placed_work(self) -> None:
        for router, view in enumerate(self.views):
            if self.read[router] < len(self.stream):
                continue
            for name in NAMES:
                foreseen = sum(m.prompt_tokens for r, m in self.pending if r == router and m.prompt_worker == name)
                assert view.workers[WorkerId(name)].prompt_tokens == self.tokens[name] + foreseen


TestTwoViewsOfOneStream = TwoViewsOfOneStream.TestCase
TestTwoViewsOfOneStream.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


def spread(routers: int, *, delay: int, seed: int) -> float:
    """Mean over time of (largest - smallest) queue in tokens, of 8 prompt workers that `routers` fill in turn; a
    placement is read by the others `delay` requests later."""
    draw = random.Random(seed)
    views = [View(salt=f"router-{i}") for i in range(routers)]
    names = [f"p{i}" for i in range(8)]
    for view in views:
        for number, name in enumerate(names):
            view.apply(report(name, kv_blocks_total=100_000, max_model_len=10_000), EntryId(f"1-{number}"), 0.0)
    queues = dict.fromkeys(names, 0)
    unread: deque[tuple[int, EntryId, Placed]] = deque()
    spreads = []
    for number in range(2000):
        router = number % routers
        tokens = draw.choice([200, 500, 1000, 1500, 3000])
        choice = place(views[router], submitted(str(number), tokens, max_tokens=1), 0.0)
        assert isinstance(choice, Placement)
        name = choice.prompt.worker_id
        message = placed(str(number), name, name, prompt_tokens=tokens, output_tokens=1)
        views[router].foresee(message)
        unread.append((number, EntryId(f"2-{number + 1}"), message))
        queues[name] += tokens
        while unread and unread[0][0] <= number - delay:
            _, entry_id, read = unread.popleft()
            for view in views:
                view.apply(read, entry_id, 0.0)
        spreads.append(max(queues.values()) - min(queues.values()))
    return sum(spreads) / len(spreads)


@pytest.mark.parametrize("seed", [1, 2])
def test_three_routers_balance_as_well_as_one(seed: int) -> None:
    """Placements are read before the next router decides, as they are where requests are further apart than a broker's
    round trip."""
    assert spread(3, delay=0, seed=seed) <= 1.1 * spread(1, delay=0, seed=seed)


def test_routers_that_do_not_hear_each_other_in_time_still_balance() -> None:
    """None has read the last two placements of the others: some run to the same worker, which the next ones see."""
    assert spread(3, delay=2, seed=1) <= 2.5 * spread(1, delay=0, seed=1)


def test_what_was_foreseen_and_never_published_does_not_count_for_ever() -> None:
    view = View()
    view.apply(report("p0"), EntryId("1-0"), 0.0)
    view.foresee(placed("a", "p0", "p0"))
    for second in range(1, 15):
        view.apply(report("p0", covers=EntryId(f"2-{second}")), EntryId(f"3-{second}"), float(second))
        view.forget(float(second))
    worker = view.workers[WorkerId("p0")]
    assert worker.prompt_tokens == 0 and worker.pool is Role.PROMPT


def test_a_worker_that_comes_back_after_it_was_forgotten_is_another_one() -> None:
    view = View()
    for second in range(60):
        for name in ("a", "b") if second < 10 or second > 45 else ("b",):
            view.apply(report(name), EntryId(f"1-{second}"), float(second))
        view.forget(float(second))
        assert view.shortest("bytes", Role.PROMPT, lambda worker: True) is not None
    assert {str(w.worker_id) for w in view.reachable(60.0)} == {"a", "b"}


def test_a_foreign_placement_of_the_same_attempt_replaces_what_was_foreseen() -> None:
    view = View()
    for name, role in zip(NAMES, ROLES, strict=True):
        view.apply(report(name, role), EntryId("1-0"), 0.0)
    view.foresee(placed("a", "p0", "t0"))
    view.apply(placed("a", "p1", "t1"), EntryId("2-0"), 0.0)
    loads = {name: view.workers[WorkerId(name)].prompt_tokens for name in NAMES}
    assert loads == {"p0": 0, "p1": 100, "t0": 0, "t1": 0}
    assert view.workers[WorkerId("t0")].decodes == 0 and RequestId("a")
