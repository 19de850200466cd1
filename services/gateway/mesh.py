"""The mesh as this gateway sees it: who is there, whether a request could be served now, how long it may be."""

from collections import deque
from importlib import metadata
from typing import Any

from shared.ids import WorkerId
from shared.policy.view import View
from shared.policy.worker_view import WorkerView
from shared.wire.costs import REFERENCE_TOKENS, CostFit
from shared.wire.reports import RoleChanged, ServiceReport, WorkerReport
from shared.wire.terms import State

ROLE_CHANGES_SHOWN = 50  # the latest first


def version() -> str:
    try:
        return metadata.version("splitmesh")
    except metadata.PackageNotFoundError:
        return "0+source"


class Mesh:
    """`broker_answers` and `draining` are set by the gateway's loops."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.view = View()
        self.broker_answers = False
        self.draining = False
        self._role_changes: deque[tuple[float, RoleChanged]] = deque(maxlen=ROLE_CHANGES_SHOWN)

    def note_role(self, changed: RoleChanged, now: float) -> None:
        self._role_changes.appendleft((now, changed))

    def serving(self, now: float) -> list[WorkerView]:
        return [worker for worker in self.view.reachable(now) if worker.report.model == self.model]

    def max_model_len(self, now: float) -> int | None:
        """Every worker must be able to hold the request; None while there is no worker."""
        return min((worker.report.max_model_len for worker in self.serving(now)), default=None)

    def unready(self, now: float) -> list[str]:
        """Why a request could not be served now; empty when it could. One worker is enough: each can do both phases."""
        routers = [s for s in self.view.services.values() if s.service == "router" and s.state is State.READY]
        checks = {
            "draining": self.draining,
            "the broker does not answer": not self.broker_answers,
            "no router": not routers,
            "no worker is ready": not self.serving(now),
        }
        return [reason for reason, holds in checks.items() if holds]

    def picture(self, now: float, own: ServiceReport) -> dict[str, Any]:
        self.view.forget(now)
        models = sorted({self.model} | {worker.report.model for worker in self.view.workers.values()})
        services = {**self.view.services, own.service_id: own}
        return {
            "version": version(),
            "models": models,
            "workers": [self._worker(worker_id) for worker_id in sorted(self.view.workers)],
            "services": [
                {"id": service.service_id, "service": service.service, "pid": service.pid, "state": service.state.value}
                for _, service in sorted(services.items())
            ],
            "role_changes": [_role_change(changed, now - at) for at, changed in self._role_changes],
        }

    def _worker(self, worker_id: WorkerId) -> dict[str, Any]:
        worker = self.view.workers[worker_id]
        report: WorkerReport = worker.report
        state = State.LOST if self.view.out_of_sight(worker) else report.state
        copied = (
            "service", "pid", "role_pinned", "model", "max_model_len", "queue_tokens", "queue_s", "decodes",
            "demand_blocks", "expected_output_tokens", "step_target_s", "running", "waiting", "block_size",
            "kv_blocks_total", "kv_blocks_used", "kv_blocks_cached", "kv_blocks_leaked", "transport", "transport_link",
            "transport_bandwidth_gb_s", "transport_latency_ms", "kv_bytes_per_token", "link_address",
            "loop_lag_p99_s", "cores",
        )  # fmt: skip
        return {
            "id": worker_id,
            "role": report.role.value,
            "pool": report.pool.value,
            "state": state.value,
            **{name: getattr(report, name) for name in copied},
            "cost_model": _cost_model(report.fit),
            **_speeds(report),
        }


def _role_change(changed: RoleChanged, age_s: float) -> dict[str, Any]:
    return {
        "worker": changed.worker_id,
        "was": changed.was.value,
        "role": changed.role.value,
        "reason": changed.reason,
        "age_s": round(max(0.0, age_s), 3),
    }


def _cost_model(fit: CostFit) -> dict[str, Any]:
    return {
        "prefill_ms": list(fit.costs.prefill_ms),
        "decode_ms": list(fit.costs.decode_ms),
        "prefill_error": fit.prefill_error,
        "decode_error": fit.decode_error,
        "prefill_steps": fit.prefill_steps,
        "decode_steps": fit.decode_steps,
    }


def _speeds(report: WorkerReport) -> dict[str, float]:
    """What the fit comes to: for a prompt of REFERENCE_TOKENS, and for the decodes there are, or a lone short one."""
    costs, batch = report.fit.costs, max(1, report.decodes)
    context = max(1, report.demand_blocks) * report.block_size
    return {
        "prefill_tokens_per_s": _rate(REFERENCE_TOKENS, costs.prefill_s(REFERENCE_TOKENS)),
        "decode_tokens_per_s": _rate(batch, costs.decode_s(context, batch)),
    }


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
