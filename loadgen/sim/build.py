"""The parts of a simulated cluster, put together as its file says."""

from collections.abc import Callable
from dataclasses import dataclass

from loadgen.sim.agenda import Agenda
from loadgen.sim.cluster import Cluster
from loadgen.sim.job import Job
from loadgen.sim.kinds import CostModel, MachineKind, Policy
from loadgen.sim.link import Link
from loadgen.sim.load import Facts, Load
from loadgen.sim.machine import CountedBlocks, Machine, Told
from loadgen.sim.outcome import MachineUse
from shared.ids import EntryId, WorkerId
from shared.policy.batch import PROMPT_SHARE, aimed_at
from shared.policy.batching import Batcher, BatchLimits, Style
from shared.policy.pooling import Pooling
from shared.policy.routing import Limits
from shared.policy.view import View
from shared.wire.reports import WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`view` is what the routers know. `pooling` is None where home roles stay."""

    machines: dict[WorkerId, Machine]
    kinds: dict[WorkerId, MachineKind]
    links: dict[WorkerId, Link]
    view: View
    limits: Limits
    pooling: Pooling | None

    def use_of(self, name: WorkerId, run_s: float) -> MachineUse:
        machine, kind = self.machines[name], self.kinds[name]
        prefill_s, decode_s, mixed_s = (machine.busy_s[what] for what in ("prefill", "decode", "mixed"))
        idle_s = max(0.0, run_s - prefill_s - decode_s - mixed_s)
        return MachineUse(
            name=name,
            type=kind.type,
            home=machine.load.role,
            busy_prefill_s=prefill_s,
            busy_decode_s=decode_s,
            busy_mixed_s=mixed_s,
            pool_s=machine.load.pool_s,
            energy_wh=kind.energy_wh(prefill_s=prefill_s, decode_s=decode_s, mixed_s=mixed_s, idle_s=idle_s),
            cost_usd=kind.cost_usd(run_s),
        )


def build(
    cluster: Cluster,
    agenda: Agenda,
    *,
    chunk_tokens: int | None,
    covers: Callable[[], EntryId],
    report: Callable[[WorkerReport], None],
    prefill_begins: Told,
    prefilled: Told,
    finished: Told,
) -> Parts:
    machines: dict[WorkerId, Machine] = {}
    kinds: dict[WorkerId, MachineKind] = {}
    for kind in cluster.machines:
        for _ in range(kind.count):
            name = WorkerId(f"{kind.type}-{len(machines)}")
            blocks = CountedBlocks(kind.kv_tokens // cluster.block_size, cluster.block_size)
            batcher: Batcher[Job] = Batcher(blocks, _batch_limits(cluster, kind, blocks, chunk_tokens), kind.fit.costs)
            facts = Facts(
                name=name, model=cluster.model, max_model_len=kind.kv_tokens, fit=kind.fit,
                step_target_s=batcher.step_target_s, layers=kind.layers, kv_bytes_per_token=kind.kv_bytes_per_token,
                bandwidth_gb_s=kind.link_bytes_per_s / 1e9, layerwise=not cluster.serialized,
                report_every_s=cluster.report_every_s, max_num_seqs=kind.max_num_seqs,
            )  # fmt: skip
            load = Load(facts, kind.role, blocks, agenda, covers=covers, report=report)
            machines[name] = Machine(
                name=name, speed=kind.speed, batcher=batcher, load=load, agenda=agenda,
                prefill_begins=prefill_begins, prefilled=prefilled, finished=finished,
            )  # fmt: skip
            kinds[name] = kind
    view = View(silent_s=float("inf"))
    return Parts(
        machines=machines,
        kinds=kinds,
        links={name: Link(kind.link_bytes_per_s, kind.exposed_s) for name, kind in kinds.items()},
        view=view,
        limits=Limits(borrow=cluster.policy is not Policy.FIXED, ttft_target_s=cluster.ttft_target_s),
        pooling=Pooling(view) if cluster.policy is Policy.MOVING else None,
    )


def _batch_limits(cluster: Cluster, kind: MachineKind, blocks: CountedBlocks, chunk_tokens: int | None) -> BatchLimits:
    """Whole prompts are the colocated baseline's way, and the published simulator's, whatever the pools."""
    published = cluster.cost_model is CostModel.SPLITWISE_SIM and cluster.policy is not Policy.CHUNKED
    whole = cluster.policy is Policy.COLOCATED or published
    return BatchLimits(
        max_num_seqs=kind.max_num_seqs,
        max_num_batched_tokens=cluster.max_num_batched_tokens,
        step_target_s=aimed_at(cluster.tbt_target_s),
        prompt_blocks=int(PROMPT_SHARE * blocks.total),
        style=Style.PROMPTS_FIRST if whole else Style.DECODE_FIRST,
        chunk_tokens=chunk_tokens,
    )
