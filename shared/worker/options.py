"""What a worker is told at its start, and what it measured of its own transport."""

from dataclasses import dataclass

from shared.ids import WorkerId
from shared.wire.terms import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """push_threshold: prompt tokens from which KV is pushed layer by layer (Splitwise IV-C); below, in one piece.
    tbt_target_s: how long a step may take that has prompts and decodes; None: see shared.policy.batching."""

    worker_id: WorkerId
    service: str
    role: Role
    model: str
    pid: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    tbt_target_s: float | None = None
    push_threshold: int = 0
    transport_link: str = ""
    transport_bandwidth_gb_s: float = 0.0
    transport_latency_ms: float = 0.0
    report_every_s: float = 1.0
    drain_s: float = 15.0
