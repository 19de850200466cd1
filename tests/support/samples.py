"""Messages with sensible fields, so that a test names only what it is about."""

from typing import Any

from shared.ids import Address, EntryId, RequestId, ServiceId, WorkerId
from shared.wire.costs import CostFit, Costs
from shared.wire.messages import Placed, Submitted
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role, Sampling, State

GATEWAY = Address("gateway:1")


def submitted(name: str = "r", tokens: int = 20, *, attempt: int = 1, **fields: Any) -> Submitted:
    sampling = fields.pop("sampling", Sampling(temperature=0.0, max_tokens=fields.pop("max_tokens", 8)))
    values: dict[str, Any] = {
        "request_id": RequestId(name),
        "attempt": attempt,
        "token_ids": tuple(range(tokens)),
        "emitted": 0,
        "sampling": sampling,
        "time_left_s": 60.0,
        "waited_s": 0.0,
        "gateway_id": ServiceId("gateway-0"),
        "reply_to": GATEWAY,
        "model": "bytes",
    }
    return Submitted(**values | fields)


def fit(prefill_ms: float = 1.0, decode_ms: tuple[float, float, float] = (10.0, 0.001, 0.1)) -> CostFit:
    """`prefill_ms` per prompt token, of a worker that has been measured."""
    costs = Costs((0.0, prefill_ms, 0.0), decode_ms)
    return CostFit(costs=costs, prefill_error=0.02, decode_error=0.02, prefill_steps=100, decode_steps=100)


def report(name: str, role: Role = Role.PROMPT, **fields: Any) -> WorkerReport:
    values: dict[str, Any] = {
        "worker_id": WorkerId(name),
        "service": "prompt_worker",
        "pid": 1,
        "role": role,
        "role_pinned": False,
        "pool": role,
        "state": State.READY,
        "model": "bytes",
        "max_model_len": 1000,
        "link_address": Address(f"{name}:1"),
        "covers": EntryId("0-0"),
        "queue_tokens": 0,
        "queue_s": fields.get("queue_tokens", 0) / 1000,
        "decodes": 1 if fields.get("demand_blocks") else 0,
        "expected_output_tokens": 256.0,
        "bounds_used": 0.5,
        "demand_blocks": 0,
        "running": 0,
        "waiting": 0,
        "max_num_seqs": 64,
        "block_size": 16,
        "kv_blocks_total": 100,
        "kv_blocks_used": 0,
        "kv_blocks_cached": 0,
        "kv_blocks_leaked": 0,
        "fit": fit(),
        "step_target_s": 1.0,
        "layers": 4,
        "kv_bytes_per_token": 1000,
        "push_threshold": 0,
        "transport": "memory",
        "transport_bandwidth_gb_s": 1.0,
        "transport_link": "tcp",
        "transport_latency_ms": 0.1,
        "loop_lag_p99_s": 0.0,
        "cores": "",
    }
    return WorkerReport(**values | fields)


def placed(name: str, prompt: str, token: str, **fields: Any) -> Placed:
    values: dict[str, Any] = {
        "request_id": RequestId(name),
        "attempt": 1,
        "prompt_worker": WorkerId(prompt),
        "token_worker": WorkerId(token),
        "prompt_address": Address(f"{prompt}:1"),
        "token_address": Address(f"{token}:1"),
        "prompt_tokens": 100,
        "output_tokens": 16,
        "gateway_id": ServiceId("gateway-0"),
        "time_left_s": 60.0,
    }
    return Placed(**values | fields)
