"""What a simulated worker knows of its own load, and reports as a live one does: when it changed, but not too often."""

from collections.abc import Callable
from dataclasses import dataclass

from loadgen.sim.agenda import Agenda
from loadgen.sim.job import Job
from shared.ids import Address, EntryId, WorkerId
from shared.kv.blocks import blocks_for
from shared.policy.batching import Blocks
from shared.policy.demand import AnswerLength
from shared.wire.costs import CostFit
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What of a worker's reports never changes. kv_bytes_per_token: all layers."""

    name: str
    model: str
    max_model_len: int
    fit: CostFit
    step_target_s: float
    layers: int
    kv_bytes_per_token: int
    bandwidth_gb_s: float
    layerwise: bool
    report_every_s: float
    max_num_seqs: int


class Load:
    """`report` gets every report; `covers` says up to which placement it has seen (at once: nothing is on its way)."""

    def __init__(
        self, facts: Facts, role: Role, blocks: Blocks, agenda: Agenda, *, covers: Callable[[], EntryId],
        report: Callable[[WorkerReport], None],
    ) -> None:  # fmt: skip
        self.facts, self.role, self.blocks = facts, role, blocks
        self._agenda, self._covers, self._report = agenda, covers, report
        self.queue_tokens, self.queue_s = 0, 0.0
        self.decodes, self.demand_blocks, self.granted_blocks = 0, 0, 0
        self.answers = AnswerLength()
        self.pool_s = dict.fromkeys(Role, 0.0)
        self._pool, self._pool_since_s = role, 0.0
        self._reported_s = float("-inf")
        self._report_due = False

    # ---- what happens ----------------------------------------------------------------------------------------------

    def prompt_placed(self, job: Job) -> None:
        job.prefill_s = self.facts.fit.costs.prefill_s(job.prompt_tokens)
        self.queue_tokens += job.prompt_tokens
        self.queue_s += job.prefill_s
        self.changed()

    def computed(self, job: Job, tokens: int) -> None:
        """So many tokens of its prompt, for the first time."""
        self.queue_tokens -= tokens
        share = tokens / job.prompt_tokens
        self.queue_s = self.queue_s - share * job.prefill_s if self.queue_tokens else 0.0
        self.changed()

    def decode_placed(self, job: Job) -> None:
        at_end = self.answers.tokens_at_end(job.prompt_tokens, 0, job.submitted.tokens_left)
        job.demand_blocks = blocks_for(at_end, self.blocks.block_size)
        self.decodes += 1
        self.demand_blocks += job.demand_blocks
        self.changed()

    def granted(self, job: Job) -> None:
        """Its KV has a place here."""
        given = self.blocks.reach(job.key, job.prompt_tokens + 1)
        assert given, "granted without room"
        self.granted_blocks += job.demand_blocks
        job.granted_s = self._agenda.now

    def decode_left(self, job: Job) -> None:
        """It will decode elsewhere, or not at all."""
        self.decodes -= 1
        self.demand_blocks -= job.demand_blocks
        if job.granted_s is not None:
            self.granted_blocks -= job.demand_blocks
            job.granted_s = None
        self.changed()

    def decode_ended(self, job: Job) -> None:
        self.decode_left(job)
        self.answers.ended(len(job.event_s), job.submitted.tokens_left)

    def set_role(self, role: Role) -> None:
        self.role = role
        self.changed()

    def changed(self) -> None:
        """Note the pool it is observed in, and report soon."""
        pool = self.pool
        if pool is not self._pool:
            self.pool_s[self._pool] += self._agenda.now - self._pool_since_s
            self._pool, self._pool_since_s = pool, self._agenda.now
        if not self._report_due:
            self._report_due = True
            self._agenda.at(self._reported_s + self.facts.report_every_s, self._say)

    def close(self) -> None:
        """Count the time up to the end."""
        self.pool_s[self._pool] += self._agenda.now - self._pool_since_s
        self._pool_since_s = self._agenda.now

    @property
    def pool(self) -> Role:
        lent = (self.role is Role.PROMPT and self.decodes) or (self.role is Role.TOKEN and self.queue_tokens)
        return Role.MIXED if lent else self.role

    # ---- what is said ----------------------------------------------------------------------------------------------

    def _say(self, _: object) -> None:
        self._report_due = False
        self._reported_s = self._agenda.now
        self._report(self.report())

    def report(self) -> WorkerReport:
        facts, blocks = self.facts, self.blocks
        return WorkerReport(
            worker_id=WorkerId(facts.name),
            service="simulated",
            pid=0,
            role=self.role,
            role_pinned=False,
            pool=self.pool,
            state=State.READY,
            model=facts.model,
            max_model_len=facts.max_model_len,
            link_address=Address(facts.name),
            covers=self._covers(),
            queue_tokens=self.queue_tokens,
            queue_s=self.queue_s,
            decodes=self.decodes,
            demand_blocks=self.demand_blocks,
            expected_output_tokens=self.answers.mean_tokens,
            bounds_used=self.answers.bounds_used,
            running=self.decodes,
            waiting=0,
            max_num_seqs=facts.max_num_seqs,
            block_size=blocks.block_size,
            kv_blocks_total=blocks.total,
            kv_blocks_used=blocks.used_blocks,
            kv_blocks_cached=0,
            kv_blocks_leaked=0,
            fit=facts.fit,
            step_target_s=facts.step_target_s,
            layers=facts.layers,
            kv_bytes_per_token=facts.kv_bytes_per_token,
            push_threshold=0 if facts.layerwise else facts.max_model_len,
            transport="simulated",
            transport_link="",
            transport_bandwidth_gb_s=facts.bandwidth_gb_s,
            transport_latency_ms=0.2,
            loop_lag_p99_s=0.0,
            cores="",
        )
