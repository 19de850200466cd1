"""Who is in which pool, and what they have to do: sums that follow a view at the cost of what changed.

They are kept in whole numbers, so that what is added and later taken away leaves nothing behind. Where workers may fall
silent, which nobody says, all of them are looked at each time; a simulated thousand never does.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from shared.ids import WorkerId
from shared.policy.view import View
from shared.policy.worker_kind import WorkerKind
from shared.policy.worker_view import WorkerView
from shared.wire.terms import Role, State

BILLION = 1_000_000_000


@dataclass(slots=True)
class Group:
    """Workers of one model, home and kind that can be given work. queue_ns: of prefill alone; occupied_ppb: how much of
    them decodes need, in billionths of a worker."""

    model: str
    home: Role
    kind: WorkerKind
    workers: int = 0
    queue_ns: int = 0
    decodes: int = 0
    occupied_ppb: int = 0


@dataclass(slots=True)
class _Counted:
    """What one worker adds to its group."""

    group: Group
    queue_ns: int
    decodes: int
    occupied_ppb: int


class Census:
    """The one asker of `view.take_changed`. `staffed`: the pools that ever had a worker."""

    def __init__(self, view: View) -> None:
        self.staffed: set[tuple[str, Role]] = set()
        self._view = view
        self._groups: dict[tuple[str, Role, WorkerKind], Group] = {}
        self._counted: dict[WorkerId, _Counted] = {}
        self._told: Mapping[WorkerId, Role] = {}

    def update(self, told: Mapping[WorkerId, Role]) -> None:
        """Count the view as it is now. `told`: homes of workers that move there, whatever they report still."""
        again = dict.fromkeys(chain(self._view.take_changed(), self._told, told))
        if self._view.may_fall_silent:
            again |= dict.fromkeys(chain(self._view.workers, self._counted))
        self._told = told
        for worker_id in again:
            before = self._counted.pop(worker_id, None)
            if (worker := self._view.workers.get(worker_id)) is not None:
                self._count(worker)
            if before is not None:
                self._take_out(before)

    def by_model(self) -> dict[str, list[Group]]:
        found: dict[str, list[Group]] = {}
        for group in self._groups.values():
            found.setdefault(group.model, []).append(group)
        return found

    def movable(self, model: str, home: Role) -> list[tuple[WorkerView, WorkerKind]]:
        """Each worker of a pool that nobody pinned to it. Visits every worker of the mesh."""
        workers = (
            (self._view.workers[worker_id], counted.group.kind)
            for worker_id, counted in self._counted.items()
            if counted.group.home is home and counted.group.model == model
        )
        return [(worker, kind) for worker, kind in workers if not worker.report.role_pinned]

    def _count(self, worker: WorkerView) -> None:
        report = worker.report
        self.staffed.add((report.model, report.role))  # even by the lost: so a new pool manager learns of them
        if report.state is not State.READY or self._view.out_of_sight(worker):
            return
        kind = WorkerKind.of(report)
        key = report.model, self._told.get(report.worker_id, report.role), kind
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        occupied_ppb = int(kind.occupied(worker.decodes, worker.demand_blocks) * BILLION)
        counted = _Counted(group, int(worker.queue_s * BILLION), worker.decodes, occupied_ppb)
        self._counted[report.worker_id] = counted
        group.workers += 1
        group.queue_ns += counted.queue_ns
        group.decodes += counted.decodes
        group.occupied_ppb += counted.occupied_ppb

    def _take_out(self, counted: _Counted) -> None:
        group = counted.group
        group.workers -= 1
        group.queue_ns -= counted.queue_ns
        group.decodes -= counted.decodes
        group.occupied_ppb -= counted.occupied_ppb
        if not group.workers:
            del self._groups[group.model, group.home, group.kind]

    def check(self) -> None:
        """The sums are those of the workers counted, of whom each is in the group of its key."""
        counted_in: defaultdict[int, list[_Counted]] = defaultdict(list)
        for counted in self._counted.values():
            counted_in[id(counted.group)].append(counted)
        assert len(counted_in) == len(self._groups), "a group without workers, or a worker without its group"
        for key, group in self._groups.items():
            mine = counted_in[id(group)]
            assert key == (group.model, group.home, group.kind), "key"
            assert group.workers == len(mine), "workers"
            assert group.queue_ns == sum(c.queue_ns for c in mine), "queue"
            assert group.decodes == sum(c.decodes for c in mine), "decodes"
            assert group.occupied_ppb == sum(c.occupied_ppb for c in mine), "occupied"
