"""What processes say of themselves on the broker's streams, and what workers are told about their home roles."""

from dataclasses import dataclass

from shared.ids import Address, EntryId, ServiceId, WorkerId
from shared.wire.costs import CostFit
from shared.wire.terms import Role, State


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """worker → everyone, on `reports`: its load as of the placement `covers`, and that it is alive.

    queue_tokens, queue_s: prompts not yet prefilled, in tokens and in seconds of prefill alone.
    decodes: sequences that decode here now or will; demand_blocks: KV blocks they are expected to need at their end.
    Placements seen but not yet received are included in all four.
    step_target_s: how long a step may take that has prompts and decodes. expected_output_tokens: mean of answers here;
    bounds_used: mean share of their max_tokens that they reached. role_pinned: an operator chose the home role, the
    pool manager leaves it alone. To foresee a transfer: layers, kv_bytes_per_token (of all layers), push_threshold
    (prompt tokens from which KV goes layer by layer), and the transport's figures, where a bandwidth of 0 is not known;
    transport_link: the means and device that bulk takes, such as "tcp/eth1", empty if nobody can tell.
    cores: of its machine, that it computes on, such as "0-1"; empty if it is not tied to any.
    """

    worker_id: WorkerId
    service: str
    pid: int
    role: Role
    role_pinned: bool
    pool: Role
    state: State
    model: str
    max_model_len: int
    link_address: Address
    covers: EntryId
    queue_tokens: int
    queue_s: float
    decodes: int
    demand_blocks: int
    expected_output_tokens: float
    bounds_used: float
    running: int
    waiting: int
    max_num_seqs: int
    block_size: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_blocks_cached: int
    kv_blocks_leaked: int
    fit: CostFit
    step_target_s: float
    layers: int
    kv_bytes_per_token: int
    push_threshold: int
    transport: str
    transport_link: str
    transport_bandwidth_gb_s: float
    transport_latency_ms: float
    loop_lag_p99_s: float
    cores: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReport:
    """gateway, router, pool manager → everyone, on `reports`: that it is alive, and how it is."""

    service_id: ServiceId
    service: str
    pid: int
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRole:
    """→ a worker's own stream: your home role from now on. `fence`: the pool manager's lease number, an older one is
    refused; None: an operator's word, which counts until it is taken back by `role` None (the pool manager decides)."""

    worker_id: WorkerId
    role: Role | None
    fence: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWorker:
    """→ a worker's own stream: take nothing new, finish what you have, leave."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """worker → everyone, on `events`: its home role changed, and why."""

    worker_id: WorkerId
    was: Role
    role: Role
    reason: str
