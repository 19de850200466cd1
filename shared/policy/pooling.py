"""The slow loop of the pools: moves home roles when the ratio of the two kinds of work has shifted (Splitwise IV-A).

Both pools have a utilisation: demand over what their workers can do, in requests of the present mix. Demand is the rate
of arrivals; for prompts also the backlog, spread over a few seconds; for tokens at least what decodes now. A worker
moves if the busier pool gets less busy by it and the other one does not become as busy: one rule for any number of
workers of any speed. The whole way to the best split must be worth `margin` and what chance explains, and must have
been so for `hold_s`; once begun, it is gone to its end. Pools with little to do stay as they are. Who is mixed is
observed, never commanded.

Left alone: mixed homes, pinned, draining and lost workers, and the last worker of a pool. A pool that lost its last
worker gets one at once. The first to move is who does the other kind already, then who has least of its own.
"""

from dataclasses import dataclass

from shared.ids import EntryId, WorkerId
from shared.policy.census import Census
from shared.policy.demand import USED_UP, expected_tokens
from shared.policy.sides import Member, Side, Sides, least_missed, way
from shared.policy.traffic import Mix, Traffic
from shared.policy.view import View
from shared.wire.messages import Placed, StreamMessage
from shared.wire.reports import RoleChanged, WorkerReport
from shared.wire.terms import Role

ROUNDING = 1e-6  # equal gains of different workers differ by less


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingLimits:
    """margin, noise_weight: a way is worth going if the busier pool is busier now than at its end by the factor
    1 + margin + noise_weight * noise. Nobody moves twice within cool_s unless that factor is clear_gain at least.
    least_utilisation: of the busier pool. prompt_target: prompt pools count as full at this utilisation, because their
    queues are random. moved_share: of all workers, per decision (one at least). taken_s: a move that no report
    confirms within it is taken for lost. first_s: nobody moves so soon after the first
    placement, unless bounds tell how long answers get."""

    first_s: float = 10.0
    window_s: float = 5.0
    backlog_s: float = 5.0
    hold_s: float = 2.0
    cool_s: float = 10.0
    margin: float = 0.15
    noise_weight: float = 0.5
    clear_gain: float = 1.5
    least_utilisation: float = 0.3
    prompt_target: float = 0.8
    moved_share: float = 0.1
    taken_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMove:
    worker_id: WorkerId
    role: Role
    reason: str


@dataclass(slots=True)
class _Want:
    """That `role` needs more workers: since when, and whether the first of them has moved."""

    role: Role
    since: float
    begun: bool = False


class Pooling:
    """Feed it every placement and role change once the view has seen them; ask it about once a second."""

    def __init__(self, view: View, limits: PoolingLimits | None = None) -> None:
        self._view = view
        self._census = Census(view)
        self._limits = limits or PoolingLimits()
        self._traffic: dict[str, Traffic] = {}
        self._began: dict[str, float] = {}  # when the first placement of a model was counted
        self._learned: dict[str, WorkerReport] = {}  # whose word on answers counts where a worker has none yet
        self._wants: dict[str, _Want] = {}
        self._moved: dict[WorkerId, tuple[Role, float]] = {}

    def apply(self, message: StreamMessage, entry_id: EntryId, now: float) -> None:
        if isinstance(message, Placed):
            self._count(message, now)
        elif isinstance(message, RoleChanged):
            self._moved[message.worker_id] = (message.role, now)

    def decide(self, now: float) -> list[RoleMove]:
        self._view.forget(now)
        self._moved = {i: (role, at) for i, (role, at) in self._moved.items() if now - at < self._limits.cool_s}
        moves: list[RoleMove] = []
        self._census.update(self._told(now))
        for model, groups in self._census.by_model().items():
            sides = Sides(groups)
            moves += self._repair(model, sides) or self._follow_load(model, sides, now)
        for move in moves:
            self._moved[move.worker_id] = (move.role, now)
        return moves

    def _count(self, placed: Placed, now: float) -> None:
        worker = self._view.workers.get(placed.token_worker) or self._view.workers.get(placed.prompt_worker)
        if worker is None:
            return
        report = worker.report
        if report.bounds_used:
            self._learned[report.model] = report
        elif (learned := self._learned.get(report.model)) is not None:
            report = learned
        else:
            return  # no answer has ended anywhere: how long they get is a guess, and nobody moves on a guess
        traffic = self._traffic.get(report.model)
        if traffic is None:
            traffic = self._traffic[report.model] = Traffic(self._limits.window_s)
            self._began[report.model] = now
        steps = expected_tokens(placed.output_tokens, report.expected_output_tokens, report.bounds_used) - 1
        traffic.add(placed.prompt_tokens, max(0, steps), now)

    def _told(self, now: float) -> dict[WorkerId, Role]:
        """Workers that were just told to move are there already."""
        return {i: role for i, (role, told_at) in self._moved.items() if now - told_at < self._limits.taken_s}

    def _repair(self, model: str, sides: Sides) -> list[RoleMove]:
        """A pool that had workers and has none any more gets one from the other, without waiting for any proof."""
        for lost, other in ((sides.prompt, sides.token), (sides.token, sides.prompt)):
            if lost.workers or sides.mixed or (model, lost.role) not in self._census.staffed or other.workers < 2:
                continue
            if movable := [worker for worker, _ in self._census.movable(model, other.role)]:
                worker_id = min(movable, key=least_missed).worker_id
                reason = f"the {lost.role} pool lost its last worker; the {other.role} pool has {other.workers}"
                return [RoleMove(worker_id=worker_id, role=lost.role, reason=reason)]
        return []

    def _follow_load(self, model: str, sides: Sides, now: float) -> list[RoleMove]:
        limits, traffic = self._limits, self._traffic.get(model)
        mix = traffic.mix(now) if traffic else None
        want = self._wants.pop(model, None)
        if mix is None or not sides.prompt.workers or not sides.token.workers:
            return []
        if now - self._began[model] < limits.first_s and self._learned[model].bounds_used < USED_UP:
            return []  # the answers that end first are the short ones
        sides.measure(mix, prompt_target=limits.prompt_target, backlog_s=limits.backlog_s)
        idler, busier = sorted((sides.prompt, sides.token), key=lambda side: side.utilisation)
        if want is None or want.role is not busier.role:
            want = _Want(busier.role, now)
        if busier.utilisation < limits.least_utilisation:
            return []
        movers, gain = self._best_way(model, sides, idler, busier)
        worth = gain >= 1 + limits.margin + limits.noise_weight * mix.noise
        if not movers or not (want.begun or worth):
            return []
        self._wants[model] = want
        if now - want.since < limits.hold_s:
            return []
        want.begun = True
        most = max(1, int(limits.moved_share * sides.workers))
        reason = _reason(sides, busier, len(movers), mix)
        return [RoleMove(worker_id=m.worker.worker_id, role=busier.role, reason=reason) for m in movers[:most]]

    def _best_way(self, model: str, sides: Sides, idler: Side, busier: Side) -> tuple[list[Member], float]:
        """With those who have not moved lately, unless the gain by all is clear."""
        movable = [sides.member(worker, kind) for worker, kind in self._census.movable(model, idler.role)]
        rested = [member for member in movable if member.worker.worker_id not in self._moved]
        movers, gain = way(idler, busier, rested)
        if len(rested) < len(movable):
            all_movers, all_gain = way(idler, busier, movable)
            if all_gain > gain * (1 + ROUNDING) and all_gain >= self._limits.clear_gain:
                return all_movers, all_gain
        return movers, gain

    def check(self) -> None:
        self._census.check()
        for traffic in self._traffic.values():
            traffic.check()
        assert all(want.role is not Role.MIXED for want in self._wants.values()), "being mixed is no home to move to"
        assert self._wants.keys() <= self._traffic.keys(), "nobody is wanted without traffic"


def _reason(sides: Sides, busier: Side, moving: int, mix: Mix) -> str:
    prompt, token = sides.prompt.workers, sides.token.workers
    more = moving if busier is sides.prompt else -moving
    return (
        f"prompt pool at {sides.prompt.utilisation:.0%}, token pool at {sides.token.utilisation:.0%} with "
        f"{mix.requests_per_s:.3g} requests/s of {mix.prompt_tokens:.0f} + {mix.decode_steps + 1:.0f} tokens: "
        f"{prompt} + {token} workers become {prompt + more} + {token - more}"
    )
