"""The case where the simulator that was published with Splitwise does no better than its baseline: 10 DGX-H100, code at
30 requests a second, 9 prompt machines and 1 token machine. That is an overload, for its baseline too.

Prediction: nobody can be fast here, but nothing is gained by mixing everything: against `colocated` E2E at P90 <= 0.85
times and TTFT at P90 <= 1.0 times. No prompt waits longer than 3 times the drain time of the queue it met, since beside
decodes prompts have a third of each step at least.
"""

import dataclasses
from collections import defaultdict
from heapq import heappop, heappush
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen.measure.result import result
from loadgen.sim.chunk_size import best_chunk
from loadgen.sim.cluster import Cluster
from loadgen.sim.outcome import SimRun
from loadgen.traces.scale import scale_rate
from loadgen.traces.trace import Trace
from shared.policy.batching import LONE_STEPS
from shared.wire.costs import REFERENCE_TOKENS
from tests.bench.simulator.loads import cluster, independent, split, timed

POLICIES = ("colocated", "chunked", "fixed", "moving")
MACHINES = split(9, 1)
RATE_RPS, SPAN_S = 30.0, 300.0
MEASURES = ("ttft_s", "tpot_s", "e2e_s")
PERCENTILES = ("p50", "p90", "p99")
BOUND = 3.0  # of waits, in drain times of the queue that was met


def run(recorded: Trace | None, modelled: Trace, console: Console) -> dict[str, Any]:
    loads = {f"Poisson, lengths of {modelled.name}": independent(modelled, rate_rps=RATE_RPS, span_s=SPAN_S)}
    for trace in (modelled, recorded):
        if trace is not None:
            loads = {trace.name: scale_rate(trace, RATE_RPS * trace.span_s / len(trace.requests)), **loads}
    found = {}
    for name, load in loads.items():
        found[name] = [measure(load, policy, console) for policy in POLICIES]
        show(name, found[name], console)
    return found


def measure(load: Trace, policy: str, console: Console) -> dict[str, Any]:
    where, chunk_tokens = cluster(MACHINES, policy), None
    if policy == "chunked":
        chunk_tokens, _ = best_chunk(load, where, console=console)
    simulated = timed(load, where, chunk_tokens=chunk_tokens).simulated
    found = result(simulated.run, slo=None)
    return {
        "policy": policy,
        "chunk_tokens": chunk_tokens,
        "requests": found["requests"],
        **{name: {key: found[name][key] for key in PERCENTILES} for name in MEASURES},
        "role_changes": [dataclasses.asdict(change) for change in simulated.role_changes],
        "longest_wait": longest_wait(simulated, where),
    }


def longest_wait(simulated: SimRun, where: Cluster) -> dict[str, Any]:
    """Of the times to the first token, less the one step that may be under way, as multiples of the time to drain the
    queue that the prompt met: prompts of the same machine that came before it and had no first token yet, and itself,
    each at the machine's fitted costs. Waits for KV memory and for decodes beside it are in it."""
    costs = where.machines[0].fit.costs
    step_s = LONE_STEPS * costs.decode_s(REFERENCE_TOKENS, 1)
    queues: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)  # first token, seconds of prefill
    queued_s: defaultdict[str, float] = defaultdict(float)
    ratios = []
    for record, (machine, _) in zip(simulated.run.records, simulated.placements, strict=True):
        queue = queues[machine]
        while queue and queue[0][0] <= record.due_s:
            queued_s[machine] -= heappop(queue)[1]
        prefill_s = costs.prefill_s(record.prompt_tokens)
        queued_s[machine] += prefill_s
        heappush(queue, (record.event_s[0], prefill_s))
        waited_s = record.event_s[0] - record.due_s - step_s
        ratios.append((waited_s / queued_s[machine], waited_s, record.prompt_tokens))
    ratio, waited_s, prompt_tokens = max(ratios)
    beyond = sum(ratio > BOUND for ratio, _, _ in ratios)
    return {"ratio": ratio, "waited_s": waited_s, "prompt_tokens": prompt_tokens, "beyond_bound": beyond}


def show(name: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{name}: 10 DGX-H100, 9 + 1", title_justify="left", box=None)
    table.add_column("policy")
    for measure_name in ("TTFT s", "TBT ms", "E2E s"):
        table.add_column(f"{measure_name} P50 / P90 / P99", justify="right")
    for heading in ("E2E P90", "TTFT P90", "role changes", "longest wait", f"beyond {BOUND:g} x"):
        table.add_column(heading, justify="right")
    base = rows[0]
    for row in rows:
        policy = f"{row['policy']} ({row['chunk_tokens']})" if row["chunk_tokens"] else row["policy"]
        times = (
            " / ".join(f"{row[name][key] * factor:.{digits}f}" for key in PERCENTILES)
            for name, factor, digits in (("ttft_s", 1, 1), ("tpot_s", 1000, 0), ("e2e_s", 1, 1))
        )
        ratios = (f"{row[name]['p90'] / base[name]['p90']:.2f} x" for name in ("e2e_s", "ttft_s"))
        wait = row["longest_wait"]
        longest = f"{wait['ratio']:.1f} x, {wait['waited_s']:.2f} s"
        table.add_row(policy, *times, *ratios, str(len(row["role_changes"])), longest, str(wait["beyond_bound"]))
    console.print(table)
