"""The mesh as this gateway sees it: who is there, whether a request could be served now, how long it may be."""

from importlib import metadata
from typing import Any

from shared.ids import WorkerId
from shared.policy.view import View, WorkerView
from shared.wire.messages import ServiceReport, WorkerReport
from shared.wire.terms import State


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
        }

    def _worker(self, worker_id: WorkerId) -> dict[str, Any]:
        worker = self.view.workers[worker_id]
        report: WorkerReport = worker.report
        state = State.LOST if self.view.out_of_sight(worker) else report.state
        copied = (
            "service", "pid", "model", "max_model_len", "queue_tokens", "demand_blocks", "running", "waiting",
            "block_size", "kv_blocks_total", "kv_blocks_used", "kv_blocks_cached", "kv_blocks_leaked",
            "prefill_tokens_per_s", "decode_tokens_per_s", "transport", "transport_bandwidth_gb_s",
            "transport_latency_ms", "link_address", "loop_lag_p99_s",
        )  # fmt: skip
        head = {"id": worker_id, "role": report.role.value, "pool": report.pool.value, "state": state.value}
        return {**head, **{name: getattr(report, name) for name in copied}}
