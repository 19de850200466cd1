"""A replay that people can watch, and what comes before it: warm-up requests, the speed of the idle server."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from loadgen.client.connect import ask_alone
from loadgen.client.fleet import Progress, Settings, replay
from loadgen.client.sender import RECENT
from loadgen.client.server import Server
from loadgen.measure.splitwise import IdleSpeed
from loadgen.record import Record, Run
from loadgen.report.live import LiveView, Snapshot
from loadgen.traces.scale import fit, lengthen
from loadgen.traces.trace import Request, Trace

IDLE_SHARES = (0.0, 0.25, 0.5, 0.75, 0.95, 0.99)  # of the trace's prompt lengths
IDLE_ROUNDS = 3
IDLE_TOKENS = 16


def replay_watched(server: Server, trace: Trace, settings: Settings, console: Console, *, title: str) -> Run:
    console.print(
        f"{title}: {len(trace.requests):,} requests over {trace.span_s:,.0f} s to {server.base_url}", highlight=False
    )
    with LiveView(console) as view:
        return replay(server, trace, settings, lambda progress: view.update(snapshot(progress, trace)))


def suited(trace: Trace, servers: Sequence[Server]) -> Trace:
    """What all the servers can be asked: within their contexts, and longer than what they add to each prompt."""
    contexts = [server.max_model_len for server in servers if server.max_model_len]
    trace = fit(trace, min(contexts)) if contexts else trace
    return lengthen(trace, 1 + max(server.overhead_tokens for server in servers))


def warm_up(server: Server, trace: Trace, count: int, console: Console, *, deadline_s: float) -> None:
    """The first requests of the trace, one by one, with other prompts than it will have."""
    if count and trace.requests:
        requests = [trace.requests[number % len(trace.requests)] for number in range(count)]
        _alone(server, requests, console, f"warming {server.base_url}", deadline_s)


def idle_speed(server: Server, trace: Trace, console: Console, *, deadline_s: float) -> IdleSpeed:
    """What Splitwise's slow-downs are measured against: lone requests at some of the trace's prompt lengths."""
    lengths = np.quantile([request.prompt_tokens for request in trace.requests], IDLE_SHARES, method="nearest")
    room = (server.max_model_len or 2**31) - IDLE_TOKENS
    requests = [
        Request(at_s=0.0, prompt_tokens=min(int(length), room), output_tokens=IDLE_TOKENS)
        for length in sorted(set(lengths))
        for _ in range(IDLE_ROUNDS)
    ]
    return IdleSpeed.fit(_alone(server, requests, console, "measuring the idle server", deadline_s))


def _alone(server: Server, requests: list[Request], console: Console, title: str, deadline_s: float) -> list[Record]:
    with console.status(f"{title} ...") as status:

        def show(done: int) -> None:
            status.update(f"{title}: {done} of {len(requests)} requests")

        return ask_alone(server, requests, deadline_s=deadline_s, on_done=show)


def snapshot(progress: Progress, trace: Trace) -> Snapshot:
    sent, done, failed = (progress.count(name) for name in ("sent", "done", "failed"))
    ended = done + failed
    left_s: float | None = None
    if trace.open_loop:
        left_s = max(0.0, trace.span_s - progress.elapsed_s)
    elif ended:
        left_s = progress.elapsed_s * (progress.total - ended) / ended
    return Snapshot(
        prepared=progress.prepared, sent=sent, running=sent - ended, done=done, failed=failed, total=progress.total,
        ttft_p50_s=_median(progress.ttft_s[-RECENT:]), tbt_p50_s=_median(progress.gap_s), elapsed_s=progress.elapsed_s,
        left_s=left_s,
    )  # fmt: skip


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
