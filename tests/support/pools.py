"""Pretended workers that prefill and decode by a cost model and report it: a load for the slow loop to follow."""

from dataclasses import dataclass, field
from random import Random

from shared.ids import EntryId
from shared.kv.blocks import blocks_for
from shared.policy.pooling import Pooling, PoolingLimits, RoleMove
from shared.policy.view import View
from shared.wire.costs import CostFit, Costs
from shared.wire.reports import RoleChanged
from shared.wire.terms import Role
from tests.support.samples import placed, report

COSTS = Costs((10.0, 0.1, 0.0), (25.0, 0.0005, 0.2))
STEP_S = 0.1
MEAN_ANSWER = 256.0


@dataclass(slots=True)
class Shape:
    """Exponentially distributed lengths: about as uneven as the lengths of real requests."""

    per_s: float
    prompt_tokens: float
    output_tokens: float


CODE_LIKE = Shape(per_s=17.0, prompt_tokens=2048, output_tokens=28)
CHAT_LIKE = Shape(per_s=12.0, prompt_tokens=600, output_tokens=300)


@dataclass(slots=True)
class Request:
    prompt_tokens: int
    left: int
    token_worker: "Pretended"


@dataclass(slots=True)
class Pretended:
    """`queue`: (seconds of prefill left, request)."""

    name: str
    role: Role
    costs: Costs
    queue: list[tuple[float, Request]] = field(default_factory=list)
    coming: int = 0
    decoding: list[Request] = field(default_factory=list)
    progress: float = 0.0

    @property
    def queue_s(self) -> float:
        return sum(seconds for seconds, _ in self.queue)

    def demand(self) -> int:
        mean = sum(r.prompt_tokens for r in self.decoding) / max(1, len(self.decoding)) or 1000
        return (self.coming + len(self.decoding)) * blocks_for(int(mean + MEAN_ANSWER), 16)

    def live(self, seconds: float) -> None:
        left = seconds
        while self.queue and left > 0:
            needed, request = self.queue.pop(0)
            if needed > left:
                self.queue.insert(0, (needed - left, request))
            elif request.left > 0:
                request.token_worker.decoding.append(request)
                request.token_worker.coming -= 1
            left -= needed
        if self.decoding:
            context = sum(r.prompt_tokens for r in self.decoding)
            self.progress += seconds / self.costs.decode_s(context, len(self.decoding))
            for request in self.decoding:
                request.left -= int(self.progress)
            self.progress %= 1
            self.decoding = [r for r in self.decoding if r.left > 0]


class PretendedPools:
    """`run(shape, seconds)`; then `split`, `moves` as (time, move)."""

    def __init__(
        self, prompt: int, token: int, *, seed: int = 1, speeds: tuple[float, ...] = (1.0,)
    ) -> None:  # fmt: skip
        self.view = View()
        self.pooling = Pooling(self.view, PoolingLimits(first_s=0.0))
        self.random = Random(seed)
        self.now = 0.0
        self.moves: list[tuple[float, RoleMove]] = []
        homes = [Role.PROMPT] * prompt + [Role.TOKEN] * token
        self.workers: dict[str, Pretended] = {}
        for number, role in enumerate(homes):
            speed = speeds[number % len(speeds)]
            costs = Costs(tuple(x / speed for x in COSTS.prefill_ms), tuple(x / speed for x in COSTS.decode_ms))
            self.workers[f"w{number}"] = Pretended(f"w{number}", role, costs)
        self._entries = 0
        self.report_all()

    @property
    def split(self) -> tuple[int, int]:
        homes = [worker.role for worker in self.workers.values()]
        return homes.count(Role.PROMPT), homes.count(Role.TOKEN)

    def run(self, shape: Shape, seconds: float) -> "PretendedPools":
        steps = round(seconds / STEP_S)
        for step in range(1, steps + 1):
            for _ in range(self._arrivals(shape.per_s * STEP_S)):
                self._place(shape)
            for worker in self.workers.values():
                worker.live(STEP_S)
            self.now += STEP_S
            if step % 5 == 0:
                self.report_all()
            if step % 10 == 0:
                self.decide()
        return self

    def decide(self) -> list[RoleMove]:
        moves = self.pooling.decide(self.now)
        self.pooling.check()
        for move in moves:
            worker = self.workers[str(move.worker_id)]
            assert worker.role is not move.role
            changed = RoleChanged(worker_id=move.worker_id, was=worker.role, role=move.role, reason=move.reason)
            worker.role = move.role
            self.pooling.apply(changed, self._entry(), self.now)
            self.moves.append((self.now, move))
        return moves

    def report_all(self) -> None:
        for worker in self.workers.values():
            fit = CostFit(costs=worker.costs, prefill_error=0.0, decode_error=0.0, prefill_steps=99, decode_steps=99)
            message = report(
                worker.name, worker.role, fit=fit, queue_s=worker.queue_s,
                queue_tokens=sum(r.prompt_tokens for _, r in worker.queue), covers=EntryId(f"{self._entries}-0"),
                decodes=worker.coming + len(worker.decoding), demand_blocks=worker.demand(), kv_blocks_total=20_000,
                step_target_s=4 * worker.costs.decode_ms[0] / 1000, expected_output_tokens=MEAN_ANSWER, bounds_used=0.5,
                max_num_seqs=1000,
            )  # fmt: skip
            self.view.apply(message, self._entry(), self.now)

    def _place(self, shape: Shape) -> None:
        tokens = 1 + int(self.random.expovariate(1 / shape.prompt_tokens))
        output = 1 + int(self.random.expovariate(1 / shape.output_tokens))
        prompt = min(self._home(Role.PROMPT), key=lambda w: w.queue_s)
        token = min(self._home(Role.TOKEN), key=lambda w: w.coming + len(w.decoding))
        prompt.queue.append((prompt.costs.prefill_s(tokens), Request(tokens, output - 1, token)))
        token.coming += output > 1
        entry_id = self._entry()
        message = placed(entry_id, prompt.name, token.name, prompt_tokens=tokens, output_tokens=output)
        self.view.apply(message, entry_id, self.now)
        self.pooling.apply(message, entry_id, self.now)

    def _home(self, role: Role) -> list[Pretended]:
        return [w for w in self.workers.values() if w.role is role] or list(self.workers.values())

    def _arrivals(self, mean: float) -> int:
        """Poisson, for small means."""
        count, left = 0, self.random.expovariate(1.0)
        while left < mean:
            count += 1
            left += self.random.expovariate(1.0)
        return count

    def _entry(self) -> EntryId:
        self._entries += 1
        return EntryId(f"{self._entries}-0")
