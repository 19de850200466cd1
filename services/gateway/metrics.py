"""The Prometheus metrics of a gateway: what it measures itself, and the workers' gauges as last reported."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.events import Outcome
from services.gateway.mesh import Mesh
from shared.wire.messages import HandedOff
from shared.wire.reports import WorkerReport

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters start at zero with the process. `mesh` has the workers' reports."""

    def __init__(self, mesh: Mesh) -> None:
        self.registry = CollectorRegistry()
        histogram, counter = self._histogram, self._counter
        self.time_to_first_token = histogram("time_to_first_token_seconds", "arrival to first token")
        self.inter_token_latency = histogram("inter_token_latency_seconds", "gap between two steps of one answer")
        self.e2e_latency = histogram("e2e_request_latency_seconds", "arrival to end, completed requests")
        self.queue_time = histogram("request_queue_time_seconds", "wait at the prompt worker")
        self.prefill_time = histogram("request_prefill_time_seconds", "computation of the prompt")
        self.decode_time = histogram("request_decode_time_seconds", "first to last token at the token worker")
        self.requests = counter("requests", "ended requests", "outcome")
        for outcome in Outcome:  # a rate does not see the first event of a series that was not there
            self.requests.labels(outcome=outcome.value)
        self.prompt_tokens = counter("prompt_tokens", "tokens of accepted prompts")
        self.generation_tokens = counter("generation_tokens", "tokens delivered")
        self.transfer_time = histogram("kv_transfer_seconds", "KV hand-off, first push to acknowledgement")
        self.exposed_time = histogram("kv_transfer_exposed_seconds", "last layer computed to acknowledgement")
        self.transfer_bytes = counter("kv_transfer_bytes", "KV bytes handed off")
        self.role_changes = counter("role_changes", "home role changes of workers", "from", "to")
        self.loop_lag = Gauge(
            "splitmesh_gateway_event_loop_lag_seconds", "delay of the last timer", registry=self.registry
        )
        self.registry.register(_Workers(mesh))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def observe_transfer(self, handed_off: HandedOff) -> None:
        self.transfer_time.observe(handed_off.transfer_s)
        self.exposed_time.observe(handed_off.exposed_s)
        self.transfer_bytes.inc(handed_off.kv_bytes)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"splitmesh_{name}", text, registry=self.registry, buckets=_LATENCY_S)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"splitmesh_{name}", text, labels, registry=self.registry)


class _Workers(Collector):
    """Read from the view at each scrape, so a worker that is gone leaves no series behind."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        view = self._mesh.view
        reports = [worker.report for worker in view.workers.values() if not view.out_of_sight(worker)]
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(f"splitmesh_{name}", text, labels=["worker"])
            for report in reports:
                family.add_metric([report.worker_id], read(report))
            yield family
        roles = GaugeMetricFamily("splitmesh_worker_info", "always 1", labels=["worker", "role", "pool"])
        for report in reports:
            roles.add_metric([report.worker_id, report.role.value, report.pool.value], 1)
        yield roles
        broker = "splitmesh_broker_up", "1 while the broker answers this gateway"
        yield GaugeMetricFamily(*broker, value=float(self._mesh.broker_answers))
        info = GaugeMetricFamily(
            "splitmesh_kv_transport_info", "always 1; bandwidth in GB/s", labels=["worker", "transport", "bandwidth"]
        )
        for report in reports:
            info.add_metric([report.worker_id, report.transport, f"{report.transport_bandwidth_gb_s:.2f}"], 1)
        yield info


def _usage(report: WorkerReport) -> float:
    return report.kv_blocks_used / max(1, report.kv_blocks_total)


_GAUGES = (
    ("num_requests_waiting", "requests whose prompt is not computed yet", lambda r: r.waiting),
    ("prompt_tokens_waiting", "prompt tokens not computed yet", lambda r: r.queue_tokens),
    ("num_requests_running", "requests being computed", lambda r: r.running),
    ("kv_cache_usage_ratio", "used share of the KV blocks", _usage),
    ("kv_blocks_total", "KV blocks", lambda r: r.kv_blocks_total),
    ("kv_blocks_used", "KV blocks in use", lambda r: r.kv_blocks_used),
    ("kv_blocks_leaked", "KV blocks that nobody owns", lambda r: r.kv_blocks_leaked),
    ("event_loop_lag_seconds", "99th percentile of timer delay", lambda r: r.loop_lag_p99_s),
)
