"""Simulated requests per second of processor time, and how that grows with requests and machines.

Prediction: 20,000 requests a second where decode steps are coalesced into few events; the cost is linear in requests
and nearly flat in machines, since nobody but the rankings looks at all of them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen.traces.scale import limit, scale_rate
from loadgen.traces.trace import Trace
from tests.bench.simulator.loads import cluster, repeated, split, timed

POLICIES = ("colocated", "chunked", "fixed", "moving")
CHUNK_TOKENS = 512
BUSY = 12.0  # times the rate of the trace: about 66 requests a second
PROMPT_SHARE = 25 / 40
MACHINES = (40, 100, 300, 1000)
MOST_COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    what: str
    policy: str
    machines: int
    load: Trace


def cases(trace: Trace) -> Iterator[Case]:
    busy, total = scale_rate(trace, BUSY), len(trace.requests)
    for what, load in (("own rate", trace), (f"rate x {BUSY:g}", busy)):
        for policy in POLICIES:
            yield Case(what=what, policy=policy, machines=MACHINES[0], load=load)
    for part in (4, 2, 1):
        yield Case(what="requests", policy="moving", machines=MACHINES[0], load=limit(busy, total // part))
    for machines in MACHINES:
        yield Case(what="machines, same load", policy="moving", machines=machines, load=busy)
    for machines in MACHINES:
        times = machines / MACHINES[0]
        copies = repeated(busy, min(MOST_COPIES, max(1, int(times))))
        load = scale_rate(copies, times)
        yield Case(what="machines, load in proportion", policy="moving", machines=machines, load=load)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    prompt = round(case.machines * PROMPT_SHARE)
    where = cluster(split(prompt, case.machines - prompt), case.policy)
    chunk_tokens = CHUNK_TOKENS if case.policy == "chunked" else None
    tries_s = [timed(case.load, where, chunk_tokens=chunk_tokens).cpu_s for _ in range(rounds)]
    count = len(case.load.requests)
    return {
        **{key: value for key, value in asdict(case).items() if key != "load"},
        "requests": count,
        "rate_rps": count / case.load.span_s,
        "cpu_s": median(tries_s),
        "requests_per_cpu_s": count / median(tries_s),
    }


def run(conv: Trace, rounds: int, console: Console) -> list[dict[str, Any]]:
    found = []
    for case in cases(conv):
        console.print(f"{case.what}: {case.policy}, {case.machines} machines ...", style="dim")
        found.append(measure(case, rounds))
    show(found, console)
    return found


def show(found: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"Speed of the simulator, chunks of {CHUNK_TOKENS}", title_justify="left", box=None)
    for heading in ("what", "policy"):
        table.add_column(heading)
    for heading in ("machines", "requests/s", "requests", "CPU s", "requests per CPU s"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row["what"], row["policy"], str(row["machines"]), f"{row['rate_rps']:.1f}", f"{row['requests']:,}",
            f"{row['cpu_s']:.2f}", f"{row['requests_per_cpu_s']:,.0f}",
        )  # fmt: skip
    console.print(table)
