"""One worker as seen from afar: its last report, plus what was placed on it since."""

from shared.ids import Attempt, WorkerId
from shared.kv.blocks import blocks_for
from shared.policy.batch import PROMPT_SHARE
from shared.policy.demand import expected_tokens
from shared.policy.ranking import Score
from shared.policy.step_room import LEAST_PROMPT_SHARE, longest_step_s
from shared.wire.costs import REFERENCE_TOKENS
from shared.wire.messages import Placed
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role

Order = tuple[int, int]  # of a stream entry: (milliseconds, sequence)


class WorkerView:
    """`placed` holds what the report does not cover yet; the sums are kept up with it. Blocks and tokens are counts,
    `queue_s` seconds of prefill alone. `version` and `tie`: see Ranked."""

    __slots__ = (
        "_prefill_share", "_reference_s", "covers", "decodes", "demand_blocks", "heard_at", "placed", "pool",
        "prompt_tokens", "queue_s", "report", "tbt_s", "tie", "version", "wait_s",
    )  # fmt: skip

    def __init__(self, report: WorkerReport, tie: int) -> None:
        self.tie = (tie, str(report.worker_id))
        self.version = 0
        self.placed: dict[Attempt, tuple[Order | None, Placed]] = {}
        self.hear(report, (0, 0), 0.0)

    @property
    def worker_id(self) -> WorkerId:
        return self.report.worker_id

    def hear(self, report: WorkerReport, covers: Order, now: float) -> None:
        """The report replaces what was known, up to the placement it covers."""
        self.report = report
        self._reference_s = report.fit.costs.prefill_s(REFERENCE_TOKENS)
        self.heard_at = now
        self.covers = covers
        self.prompt_tokens = report.queue_tokens
        self.queue_s = report.queue_s
        self.decodes = report.decodes
        self.demand_blocks = report.demand_blocks
        if self.placed:
            kept = {key: pair for key, pair in self.placed.items() if pair[0] is None or pair[0] > covers}
            self.placed = kept
            for _, placed in kept.values():
                self._count(placed, 1)
        self._foresee()

    def place(self, placed: Placed, order: Order | None) -> bool:
        """Count a placement unless the report covers it; whether that changed anything."""
        key = placed.request_id, placed.attempt
        if order is not None and order <= self.covers:
            return self.take_back(placed)
        known = key in self.placed
        self.placed[key] = (order, placed)
        if known:
            return False
        self._count(placed, 1)
        self._foresee()
        return True

    def take_back(self, placed: Placed) -> bool:
        """Do not count it any more, if it was."""
        if self.placed.pop((placed.request_id, placed.attempt), None) is None:
            return False
        self._count(placed, -1)
        self._foresee()
        return True

    def blocks_at_end(self, prompt_tokens: int, output_tokens: int) -> int:
        """KV blocks of such a request when it ends: `output_tokens` is an upper bound that few reach."""
        report = self.report
        expected = expected_tokens(output_tokens, report.expected_output_tokens, report.bounds_used)
        return blocks_for(prompt_tokens + expected, report.block_size)

    def has_room(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether there is a seat in the batch, and the request's KV fits beside what is expected of the others."""
        at_end = self.demand_blocks + self.blocks_at_end(prompt_tokens, output_tokens)
        return self.decodes < self.report.max_num_seqs and at_end <= self.report.kv_blocks_total

    def room_in_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """When there will be such room: KV memory is given back evenly over the time that answers take."""
        missing = self.demand_blocks + self.blocks_at_end(prompt_tokens, output_tokens) - self.report.kv_blocks_total
        if missing <= 0 or not self.demand_blocks:
            return 0.0
        return missing / self.demand_blocks * self.report.expected_output_tokens * self.tbt_s

    def ttft_s(self, prompt_tokens: int) -> float:
        """Predicted time to the first token of a prompt that is placed here now."""
        return self.wait_s + self.report.fit.costs.prefill_s(prompt_tokens) / self._prefill_share

    def seconds_for(self, prompt_tokens: int) -> float:
        """How long a queue of so many tokens would keep this worker busy."""
        return prompt_tokens / REFERENCE_TOKENS * self._reference_s

    @property
    def prompt_score(self) -> Score:
        """JSQ of the prompt side: pending tokens at this worker's speed, and how fast it would do the next prompt."""
        return self.wait_s + self._reference_s / self._prefill_share, self.kv_demand

    @property
    def token_score(self) -> Score:
        """JSQ of the token side: KV demand at this worker's speed, which is the time between tokens it leads to."""
        return self.tbt_s, self.kv_demand

    @property
    def kv_demand(self) -> float:
        """Share of the KV memory that is expected to be needed."""
        return self.demand_blocks / max(1, self.report.kv_blocks_total)

    def _count(self, placed: Placed, sign: int) -> None:
        if placed.prompt_worker == self.report.worker_id:
            self.prompt_tokens += sign * placed.prompt_tokens
            self.queue_s += sign * self.report.fit.costs.prefill_s(placed.prompt_tokens)
        if placed.token_worker == self.report.worker_id and placed.output_tokens > 1:
            self.decodes += sign
            self.demand_blocks += sign * self.blocks_at_end(placed.prompt_tokens, placed.output_tokens)

    def _foresee(self) -> None:
        """Once a change is counted: what a request placed here now would meet, and which pool it would meet it in."""
        self.version += 1
        report = self.report
        prompts, decodes = self.prompt_tokens > 0, self.decodes > 0
        lent = (prompts and report.role is Role.TOKEN) or (decodes and report.role is Role.PROMPT)
        self.pool = Role.MIXED if lent else report.role
        tbt_s = report.fit.costs.decode_s(self.demand_blocks * report.block_size, self.decodes + 1)
        # A prompt worker that is lent will have prompts beside its decodes: what it takes from them is not free.
        prompts = prompts or report.role is Role.PROMPT
        self.tbt_s = longest_step_s(tbt_s, report.step_target_s) if prompts else tbt_s
        # Beside decodes, whose steps may take step_target_s, prompts get what these leave of it.
        left = 1.0 - tbt_s / report.step_target_s if decodes else 1.0
        self._prefill_share = max(LEAST_PROMPT_SHARE, left)
        self.wait_s = self.queue_s / self._prefill_share
        if decodes:
            self.wait_s += self._seat_in_s()

    def _seat_in_s(self) -> float:
        """When decodes leave a seat and memory for another prompt: they end evenly over the time that answers take."""
        report = self.report
        held = max(self.demand_blocks, report.kv_blocks_used) + blocks_for(self.prompt_tokens, report.block_size)
        missing = max(0.0, 1.0 - PROMPT_SHARE * report.kv_blocks_total / held) if held else 0.0
        if self.decodes >= report.max_num_seqs:
            missing = max(missing, (self.decodes + 1 - report.max_num_seqs) / self.decodes)
        return missing * report.expected_output_tokens * self.tbt_s
