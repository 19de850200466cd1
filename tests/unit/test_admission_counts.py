"""Whoever was let in counts until its placement is read: load is what was let in, whatever comes between."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.ids import EntryId, RequestId, WorkerId
from shared.policy.admission import Admission, Admitted, Promises
from shared.policy.routing import Limits
from shared.policy.view import View
from shared.wire.messages import Placed
from shared.wire.terms import Role
from tests.support.samples import placed, report, submitted

LIMITS = Limits()
TTFT_1S = Promises(ttft_target_s=1.0)


def view_of(**workers: Role) -> View:
    view = View()
    for name, role in workers.items():
        view.apply(report(name, role, kv_blocks_total=10_000), EntryId("1-0"), 0.0)
    return view


def burst(admission: Admission, size: int) -> list[str]:
    """Requests of 0.1 s each that all come at once; the names of those that are let in."""
    names = [f"r{number}" for number in range(size)]
    return [n for n in names if isinstance(admission.ask(submitted(n, 100), 0.0), Admitted)]


def test_of_a_burst_only_so_many_are_let_in_as_can_be_served() -> None:
    view = view_of(p0=Role.PROMPT, p1=Role.PROMPT)
    admission = Admission(view, Promises(ttft_target_s=1.05), Limits(ttft_target_s=1.05))
    admitted = burst(admission, 100)
    assert len(admitted) == 20, "0.1 s each on two workers"
    for name in admitted:
        admission.settle(RequestId(name))
    admission.check()
    assert [view.workers[WorkerId(w)].prompt_tokens for w in ("p0", "p1")] == [0, 0]
    assert len(burst(admission, 100)) == 20


def test_the_real_placement_takes_the_place_of_the_expected_one() -> None:
    view = view_of(p0=Role.PROMPT, p1=Role.PROMPT)
    admission = Admission(view, TTFT_1S, LIMITS)
    verdict = admission.ask(submitted("a", 100), 0.0)
    assert isinstance(verdict, Admitted) and verdict.placement is not None
    expected = verdict.placement.prompt.worker_id
    (other,) = view.workers.keys() - {expected}
    assert view.workers[expected].prompt_tokens == 100
    view.apply(placed("a", other, other), EntryId("7-0"), 0.0)
    admission.settle(RequestId("a"))
    assert (view.workers[expected].prompt_tokens, view.workers[other].prompt_tokens) == (0, 100)


class Doors(RuleBasedStateMachine):
    """Whatever comes between: a worker's load is its report and every request expected or placed there since."""

    @initialize()
    def begin(self) -> None:
        self.view = view_of(p0=Role.PROMPT, p1=Role.PROMPT, t0=Role.TOKEN)
        self.admission = Admission(self.view, Promises(ttft_target_s=2.0), LIMITS)
        self.expected: dict[str, Placed] = {}
        self.placed: list[tuple[int, Placed]] = []
        self.covered = dict.fromkeys(self.view.workers, 0)
        self.names = 0
        self.order = 0

    @rule(tokens=st.integers(1, 900))
    def ask(self, tokens: int) -> None:
        self.names += 1
        request = submitted(f"r{self.names}", tokens)
        verdict = self.admission.ask(request, 0.0)
        if isinstance(verdict, Admitted):
            assert verdict.placement is not None
            self.expected[request.request_id] = verdict.placement.placed(request)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), attempt=st.integers(1, 2))
    def place(self, data: st.DataObject, attempt: int) -> None:
        """A router decides as it sees fit; of a resubmission only the second attempt is placed."""
        name = data.draw(st.sampled_from(sorted(self.expected)))
        prompt, token = (data.draw(st.sampled_from(sorted(self.view.workers))) for _ in range(2))
        self.order += 1
        real = replace(self.expected.pop(name), prompt_worker=prompt, token_worker=token, attempt=attempt)
        self.placed.append((self.order, real))
        self.view.apply(real, EntryId(f"{self.order}-0"), 0.0)
        self.admission.settle(RequestId(name))

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        del self.expected[name]
        self.admission.settle(RequestId(name))
        self.admission.settle(RequestId(name))

    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """A worker reports that all that was placed on it is done."""
        worker_id = data.draw(st.sampled_from(sorted(self.view.workers)))
        self.covered[worker_id] = self.order
        known = self.view.workers[worker_id].report
        self.view.apply(replace(known, covers=EntryId(f"{self.order}-0")), EntryId("1-0"), 0.0)

    @invariant()
    def load_is_what_was_let_in(self) -> None:
        self.admission.check()
        for worker_id, worker in self.view.workers.items():
            real = [p for order, p in self.placed if order > self.covered[worker_id]]
            counted = [*real, *self.expected.values()]
            assert worker.prompt_tokens == sum(p.prompt_tokens for p in counted if p.prompt_worker == worker_id)
            assert worker.decodes == sum(p.token_worker == worker_id for p in counted)


TestDoors = Doors.TestCase
TestDoors.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
