"""The clusters of the Splitwise paper at equal power: the highest rate at which all of its nine service levels hold.

Loads are made as by the published generator, 120 s of Poisson arrivals. Pools are told the level that binds them: the
time between tokens may be 1.25 times a lone A100's. Prediction: as in the paper, pools of A100 take more than as many
A100 without pools; but decodes that slow down with batch and context, and KV memory that ends at about 55,000 BLOOM
tokens a machine, leave less of the gain than a simulator that knows neither, and want more token machines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadgen.measure.latencies import FloatArray, measured
from loadgen.measure.search import RateSearch
from loadgen.measure.splitwise import LIMITS, nine_of, slow_downs
from loadgen.measure.stats import PERCENTILES
from loadgen.sim.chunk_size import best_chunk
from loadgen.sim.cluster import Cluster
from loadgen.sim.kinds import Policy
from loadgen.sim.outcome import SimRun
from loadgen.sim.profiles import idle_speed
from loadgen.traces.trace import Trace
from shared.policy.batch import AIM
from tests.bench.simulator.loads import MODEL, Counts, cluster, independent, timed

SPAN_S = 120.0
START_RPS, TOLERANCE = 40.0, 0.03
PUBLISHED_RPS = 70.0
H100, A100, CAPPED = "dgx-h100", "dgx-a100", "dgx-h100-capped"


def pools(prompt_kind: str, prompt: int, token_kind: str, token: int) -> Counts:
    return (prompt_kind, prompt, "prompt"), (token_kind, token, "token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """`policies` that are compared on it; the first is the nearest to the published simulator's."""

    name: str
    machines: dict[str, Counts]  # by trace
    policies: tuple[str, ...]


BASELINES = (
    Design(
        name="Baseline-A100",
        machines=dict.fromkeys(("conv", "code"), ((A100, 70, "mixed"),)),
        policies=("colocated", "chunked"),
    ),
    Design(
        name="Baseline-H100",
        machines=dict.fromkeys(("conv", "code"), ((H100, 40, "mixed"),)),
        policies=("colocated", "chunked"),
    ),
)
SPLIT = tuple(
    Design(name=name, machines={"conv": pools(*conv), "code": pools(*code)}, policies=("fixed", "moving"))
    for name, conv, code in (
        ("AA", (A100, 45, A100, 25), (A100, 55, A100, 15)),
        ("HH", (H100, 25, H100, 15), (H100, 35, H100, 5)),
        ("HA", (H100, 25, A100, 26), (H100, 35, A100, 8)),
        ("HHcap", (H100, 25, CAPPED, 21), (H100, 35, CAPPED, 7)),
    )
)
PUBLISHED = {  # by the published simulator at PUBLISHED_RPS: slow-downs of TBT and of E2E at P50, P90, P99
    ("Baseline-A100", "conv"): ((1.37, 1.68, 2.21), (1.37, 1.67, 2.13)),
    ("Baseline-H100", "conv"): ((0.94, 1.10, 1.38), (0.93, 1.09, 1.34)),
    ("HH", "conv"): ((0.72, 0.74, 0.74), (0.71, 0.74, 0.75)),
    ("HA", "conv"): ((0.96, 0.99, 1.00), (0.95, 1.00, 1.00)),
    ("HHcap", "conv"): ((0.72, 0.74, 0.74), (0.71, 0.74, 0.75)),
    ("Baseline-A100", "code"): ((1.79, 4.88, 9.97), (1.56, 3.67, 7.53)),
    ("Baseline-H100", "code"): ((0.94, 2.15, 4.24), (0.82, 1.68, 3.08)),
    ("AA", "code"): ((0.96, 1.03, 1.21), (1.03, 1.15, 1.98)),
    ("HH", "code"): ((0.73, 0.80, 0.98), (0.66, 0.75, 0.80)),
    ("HA", "code"): ((0.96, 1.03, 1.18), (0.82, 0.99, 1.04)),
    ("HHcap", "code"): ((0.73, 0.80, 0.97), (0.66, 0.75, 0.80)),
}


def run(traces: dict[str, Trace], console: Console) -> dict[str, Any]:
    found: dict[str, Any] = {"highest_rate": [], "published": []}
    for kind, trace in traces.items():
        rows = []
        for design in (*BASELINES, *SPLIT):
            for policy in design.policies:
                console.print(f"{kind}: {design.name}, {policy} ...", style="dim")
                where = cluster(design.machines[kind], policy, **targets(policy))
                rows.append({"trace": kind, "design": design.name, "policy": policy, **highest(trace, where, console)})
        show(kind, rows, console)
        found["highest_rate"] += rows
        found["published"] += published(kind, trace, console)
    return found


# ---- the highest rate -----------------------------------------------------------------------------------------------


def highest(trace: Trace, where: Cluster, console: Console) -> dict[str, Any]:
    """A rate holds if all nine levels do. `missed`: those that do not at the lowest rate that was tried in vain."""
    chunk_tokens = None
    if where.policy is Policy.CHUNKED:
        load = independent(trace, rate_rps=PUBLISHED_RPS, span_s=SPAN_S)
        chunk_tokens, _ = best_chunk(load, where, console=console)
    search = RateSearch(start_rps=START_RPS, target=1.0, tolerance=TOLERANCE)
    tries: dict[float, dict[str, Any]] = {}
    while (rate_rps := search.next_rate()) is not None:
        load = independent(trace, rate_rps=rate_rps, span_s=SPAN_S)
        tries[rate_rps] = outcome(timed(load, where, chunk_tokens=chunk_tokens).simulated, where)
        search.observe(rate_rps, float(not tries[rate_rps]["missed"]), valid=True)
    failed = [rate_rps for rate_rps, one in tries.items() if one["missed"]]
    best = search.best
    return {
        "rate_rps": best,
        "chunk_tokens": chunk_tokens,
        **(tries[best] if best is not None else {}),
        "missed": tries[min(failed)]["missed"] if failed else [],
    }


def targets(policy: str) -> dict[str, float]:
    """Steps shall aim at Splitwise's level at P50 itself, not below it."""
    alone = idle_speed(MODEL, published=False)
    return {"tbt_target_s": LIMITS["tbt"][0] * alone.tbt_s / AIM} if Policy(policy).has_pools else {}


def outcome(simulated: SimRun, where: Cluster) -> dict[str, Any]:
    """Cost and energy are of the whole run, until the last answer has ended."""
    table: dict[str, Any] = nine_of(measured(simulated.run), where.idle)
    count = len(simulated.run.records)
    return {
        "usd_per_1000": 1000 * sum(use.cost_usd for use in simulated.machines) / count,
        "wh_per_request": sum(use.energy_wh for use in simulated.machines) / count,
        "role_changes": len(simulated.role_changes),
        "slow_downs": {name: [cell["value"] for cell in table[name].values()] for name in LIMITS},
        "missed": [f"{name} {at}" for name in LIMITS for at, cell in table[name].items() if not cell["met"]],
    }


def show(kind: str, rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{kind}: highest rate with all nine levels, equal power", title_justify="left", box=None)
    for heading in ("cluster", "policy"):
        table.add_column(heading)
    for heading in ("requests/s", "x B-A100", "x B-H100", "$ per 1,000", "Wh per request", "role changes"):
        table.add_column(heading, justify="right")
    table.add_column("missed just above")
    base = {row["design"]: row["rate_rps"] for row in rows if row["policy"] == "colocated"}
    for row in rows:
        rate_rps = row["rate_rps"]
        if rate_rps is None:
            table.add_row(row["design"], row["policy"], "none", *[""] * 5, ", ".join(row["missed"]))
            continue
        ratios = (f"{rate_rps / base[name]:.2f}" if base[name] else "" for name in ("Baseline-A100", "Baseline-H100"))
        table.add_row(
            row["design"], f"{row['policy']} ({row['chunk_tokens']})" if row["chunk_tokens"] else row["policy"],
            f"{rate_rps:.1f}", *ratios, f"{row['usd_per_1000']:.2f}", f"{row['wh_per_request']:.2f}",
            str(row["role_changes"]), ", ".join(row["missed"]),
        )  # fmt: skip
    console.print(table)


# ---- the published simulator ----------------------------------------------------------------------------------------


def published(kind: str, trace: Trace, console: Console) -> list[dict[str, Any]]:
    """With its cost model: slow-downs at PUBLISHED_RPS beside what it says itself, and the highest rate. It divides TBT
    by one token too many and never moves a home role; its random numbers are not ours."""
    load = independent(trace, rate_rps=PUBLISHED_RPS, span_s=SPAN_S)
    table = Table(
        title=f"{kind} at {PUBLISHED_RPS:g} requests/s, cost model splitwise-sim (in brackets: as published)",
        title_justify="left", box=None,
    )  # fmt: skip
    for heading in ("cluster", "policy", "TTFT slower P50 / P90 / P99", "TBT", "E2E", "highest rate", "x B-A100"):
        table.add_column(heading)
    rows = []
    for design in (*BASELINES, *SPLIT):
        policy = design.policies[0]
        console.print(f"{kind}: {design.name}, cost model splitwise-sim ...", style="dim")
        where = cluster(design.machines[kind], policy, cost_model="splitwise-sim")
        simulated = timed(load, where).simulated
        found = outcome(simulated, where) | {"trace": kind, "design": design.name, "policy": policy}
        found["highest_rps"] = highest(trace, where, console)["rate_rps"]
        run = measured(simulated.run)
        found["slow_downs"]["tbt"] = percentiles(slow_downs(run, where.idle)["tbt"] * (run.tokens - 1) / run.tokens)
        rows.append(found)
        theirs = PUBLISHED.get((design.name, kind))
        cells = [triplet(found["slow_downs"]["ttft"])]
        for number, name in enumerate(("tbt", "e2e")):
            cells.append(triplet(found["slow_downs"][name]) + (f" ({triplet(theirs[number])})" if theirs else ""))
        rate_rps, base_rps = found["highest_rps"], rows[0]["highest_rps"]
        rates = (f"{rate_rps:.1f}", f"{rate_rps / base_rps:.2f}") if rate_rps and base_rps else ()
        table.add_row(design.name, policy, *cells, *rates)
    console.print(table)
    return rows


def percentiles(values: FloatArray) -> list[float]:
    return [float(value) for value in np.nanpercentile(values, PERCENTILES)]


def triplet(values: Sequence[float | None]) -> str:
    return " / ".join("inf" if value is None else f"{value:.2f}" for value in values)
