"""The two pools of a model as the slow loop weighs them: how busy each is, and who would best move to the other.

Demand and capacity are in requests of the present mix per second, so that workers of any speed and memory add up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared.policy.census import BILLION, Group
from shared.policy.traffic import Mix
from shared.policy.worker_kind import WorkerKind
from shared.policy.worker_view import WorkerView
from shared.wire.terms import Role


@dataclass(slots=True)
class Member:
    """A worker, and how many requests of the mix it could prefill per second, or decode, as full as is good for it."""

    worker: WorkerView
    prompts_per_s: float
    decodes_per_s: float

    def rate(self, role: Role) -> float:
        return self.prompts_per_s if role is Role.PROMPT else self.decodes_per_s


@dataclass(slots=True)
class Side:
    """One pool, by home."""

    role: Role
    workers: int = 0
    demand: float = 0.0
    capacity: float = 0.0

    @property
    def utilisation(self) -> float:
        return self.demand / self.capacity if self.capacity > 0 else 0.0


class Sides:
    """`prompt`, `token`, and how many mixed homes there are beside them."""

    def __init__(self, groups: list[Group]) -> None:
        self._groups = groups
        self._rates: dict[WorkerKind, tuple[float, float]] = {}
        self.prompt, self.token, self.mixed = Side(Role.PROMPT), Side(Role.TOKEN), 0
        for group in groups:
            if group.home is Role.MIXED:
                self.mixed += group.workers
            else:
                self._of(group.home).workers += group.workers

    @property
    def workers(self) -> int:
        return self.prompt.workers + self.token.workers + self.mixed

    def measure(self, mix: Mix, *, prompt_target: float, backlog_s: float) -> None:
        """Demand and capacity of both pools. What mixed homes do counts as demand: they are the reserve."""
        queued = decodes = decoding = 0.0
        for group in self._groups:
            prompts_per_s, decodes_per_s = 1 / mix.prefill_s(group.kind), 1 / mix.decode_s(group.kind)
            self._rates[group.kind] = prompt_target * prompts_per_s, decodes_per_s
            if group.home is Role.PROMPT:
                self.prompt.capacity += group.workers * prompt_target * prompts_per_s
            elif group.home is Role.TOKEN:
                self.token.capacity += group.workers * decodes_per_s
            queued += group.queue_ns / BILLION * prompts_per_s
            decodes += group.decodes
            decoding += group.occupied_ppb / BILLION * decodes_per_s
        self.prompt.demand = mix.requests_per_s + queued / backlog_s
        begun = max(0.0, 1 - queued / decodes) if decodes else 0.0  # the others still wait for their prefill
        self.token.demand = max(mix.requests_per_s, decoding * begun)

    def member(self, worker: WorkerView, kind: WorkerKind) -> Member:
        """Once measured."""
        return Member(worker, *self._rates[kind])

    def _of(self, role: Role) -> Side:
        return self.prompt if role is Role.PROMPT else self.token


def way(idler: Side, busier: Side, movable: Iterable[Member]) -> tuple[list[Member], float]:
    """Who would have to move until no further move helps, and how many times busier the busiest pool is now than it
    would be then. The last worker of a pool stays."""
    worst = before = busier.utilisation
    gained, left = busier.capacity, idler.capacity
    movers: list[Member] = []
    for member in sorted(movable, key=lambda member: least_missed(member.worker)):
        gained += member.rate(busier.role)
        left -= member.rate(idler.role)
        if len(movers) + 1 >= idler.workers or left <= 0:
            break
        after = max(busier.demand / gained, idler.demand / left)
        if after >= worst:
            break
        worst = after
        movers.append(member)
    return movers, before / worst if worst > 0 else 1.0


def least_missed(worker: WorkerView) -> tuple[bool, float, str]:
    """Borrowed workers first (Splitwise's re-purposing), then those with the least work of their own phase."""
    own = worker.queue_s if worker.report.role is Role.PROMPT else worker.kv_demand
    return worker.pool is not Role.MIXED, own, worker.worker_id
