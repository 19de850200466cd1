"""What a worker is told at its start, and what it measured of its own transport."""

from dataclasses import dataclass

from shared.ids import WorkerId
from shared.wire.terms import Role

PROMPT_SHARE = 0.75  # of all KV blocks; the rest serves grants and growing decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """push_threshold: prompt tokens from which KV is pushed layer by layer (Splitwise IV-C); below, in one piece."""

    worker_id: WorkerId
    service: str
    role: Role
    model: str
    pid: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    push_threshold: int = 0
    transport_bandwidth_gb_s: float = 0.0
    transport_latency_ms: float = 0.0
    report_every_s: float = 1.0
    drain_s: float = 15.0
