"""What a simulation gives: a run like any other, and what its machines did meanwhile.

The result is that of a replay, with one key more, "simulation". Its pools go by the home role that a machine has at the
end; what it was observed in meanwhile is "mean_observed", machines in that pool on average over the run.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from loadgen.measure.result import Result, result
from loadgen.measure.slo import Slo
from loadgen.measure.stats import share
from loadgen.record import Outcome, Record, Run
from loadgen.report.files import write
from loadgen.sim.cluster import Cluster
from shared.wire.terms import Role

COLUMNS = "arrival_s,prompt_tokens,output_tokens,ttft_s,tbt_s,e2e_s,prompt_worker,token_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChange:
    """`worker` got another home role, and why."""

    at_s: float
    worker: str
    was: str
    role: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUse:
    """busy_*: seconds in steps of prompts, of decodes, of both. pool_s: seconds it was observed in each pool. `home`:
    its role at the end. Energy and cost are of the whole run, idle time included."""

    name: str
    type: str
    home: Role
    busy_prefill_s: float
    busy_decode_s: float
    busy_mixed_s: float
    pool_s: dict[Role, float]
    energy_wh: float
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRun:
    """placements[i]: where the prompt and the answer of record i were computed; empty names: nowhere."""

    run: Run
    placements: list[tuple[str, str]]
    role_changes: list[RoleChange]
    machines: list[MachineUse]


def simulation_result(simulated: SimRun, cluster: Cluster, *, slo: Slo | None, cpu_s: float) -> Result:
    """`cpu_s`: what the simulation took of this computer. Intervals are left out: another seed says more of chance."""
    found = result(simulated.run, slo=slo, idle=cluster.idle, seed=None)
    uses = simulated.machines
    found["simulation"] = {
        "policy": cluster.policy.value,
        "cost_model": cluster.cost_model.value,
        "machines": dict(Counter(use.type for use in uses)),
        "pools": {role.value: _pool(role, uses) for role in Role},
        "role_changes": [asdict(change) for change in simulated.role_changes],
        "cost_usd": sum(use.cost_usd for use in uses),
        "energy_wh": sum(use.energy_wh for use in uses),
        "requests_per_cpu_s": share(len(simulated.run.records), cpu_s),
    }
    return found


def _pool(role: Role, uses: list[MachineUse]) -> dict[str, Any]:
    mine = [use for use in uses if use.home is role]
    seconds = sum(sum(use.pool_s.values()) for use in mine)
    prefill_s, decode_s, mixed_s = (
        sum(getattr(use, name) for use in mine) for name in ("busy_prefill_s", "busy_decode_s", "busy_mixed_s")
    )
    every = sum(sum(use.pool_s.values()) for use in uses)
    observed = share(sum(use.pool_s.get(role, 0.0) for use in uses), every)
    return {
        "machines": len(mine),
        "mean_observed": None if observed is None else observed * len(uses),
        "busy_share": share(prefill_s + decode_s + mixed_s, seconds),
        "prefill_share": share(prefill_s, seconds),
        "decode_share": share(decode_s, seconds),
        "mixed_share": share(mixed_s, seconds),
    }


def write_csv(path: Path, simulated: SimRun) -> None:
    """A line a request, in the order of the trace. tbt_s is the mean between its tokens; what a request has not is
    empty."""
    rows = zip(simulated.run.records, simulated.placements, strict=True)
    lines = (f"{_times(record)},{prompt},{token}\n".encode() for record, (prompt, token) in rows)
    write(path, chain([f"{COLUMNS}\n".encode()], lines))


def _times(record: Record) -> str:
    ttft_s = tbt_s = e2e_s = ""
    if record.event_s:
        first_s, last_s = record.event_s[0], record.event_s[-1]
        ttft_s = f"{first_s - record.due_s:.6f}"
        if (gaps := record.tokens - 1) > 0:
            tbt_s = f"{(last_s - first_s) / gaps:.6f}"
    if record.outcome is Outcome.COMPLETED and record.done_s is not None:
        e2e_s = f"{record.done_s - record.due_s:.6f}"
    return f"{record.due_s:.6f},{record.prompt_tokens},{record.output_tokens},{ttft_s},{tbt_s},{e2e_s}"
