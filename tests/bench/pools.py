"""Pools that move, live: the same load on moving pools and on fixed splits, and what the simulator says of each.

    python -m tests.bench.pools shift [--seconds 60] [--splits 4,5,6] [--rounds 1] [--seed 1] [--json FILE]
    python -m tests.bench.pools agree [--requests 400] [--rounds 1] [--json FILE]
    python -m tests.bench.pools real [--requests 400] [--seconds 60] [--json FILE]

Real services, Redis, links and transfers; 8 workers with the paced engine, whose steps take what a cost model says
(`real`: 1 + 1 workers with the real model). `shift`: a load of the shape of Azure's code trace, then of its
conversations, then code again, lengths x 0.25; goodput is requests within TTFT 3 s and a mean of 0.15 s between tokens.
`agree`: a steady mix, moving and fixed, live beside simulated, a trace a round. Where pools move, a request that comes
milliseconds late can send many another way, so both sides are medians: over the rounds, and of the simulator over
arrivals shifted by what HTTP and messages take. Prediction (simulated): moving 1.3 times the best split.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.sim.cluster import Cluster
from loadgen.sim.world import simulate
from loadgen.traces.load import load
from loadgen.traces.readers import own
from loadgen.traces.trace import Request, Trace
from tests.support.running import RunningMesh

WORKERS = 8
PREFILL_MS, DECODE_MS = (10.0, 1.0, 1e-5), (40.0, 0.002, 12.0)
TTFT_S, TBT_S = 3.0, 0.15
SLO = f"ttft={TTFT_S:g},tbt={TBT_S:g}"
LENGTH_SCALE = 0.25
CODE_RPS, CONV_RPS, REAL_RPS = 8.0, 5.0, 2.0
PACED = f"prefill_ms={','.join(map(str, PREFILL_MS))} decode_ms={','.join(map(str, DECODE_MS))}"
QUANTILES = (("ttft_s", "p50"), ("ttft_s", "p90"), ("tpot_s", "p50"), ("tpot_s", "p90"))
AGREE = {"p50": 0.10, "p90": 0.20}
SHIFTED_RUNS, SHIFT_S = 21, 0.02


def lengths(name: str, draw: np.random.Generator, count: int) -> list[tuple[int, int]]:
    shape = load(name).requests
    picked = (shape[i] for i in draw.integers(0, len(shape), count))
    return [(max(1, int(r.prompt_tokens * LENGTH_SCALE)), max(1, int(r.output_tokens * LENGTH_SCALE))) for r in picked]


def phases(parts: list[tuple[str, float, float]], seed: int) -> Trace:
    """(name of the shape, requests a second, seconds), one after the other, each with its arrivals spread evenly by
    chance."""
    draw = np.random.default_rng(seed)
    requests, start_s = [], 0.0
    for name, rate, seconds in parts:
        at = start_s + np.sort(draw.uniform(0, seconds, int(rate * seconds)))
        both = zip(at.tolist(), lengths(name, draw, len(at)), strict=True)
        requests += [Request(at_s=a, prompt_tokens=prompt, output_tokens=output) for a, (prompt, output) in both]
        start_s += seconds
    return Trace(name="-".join(name.removeprefix("azure-") for name, _, _ in parts), requests=tuple(requests))


def live(trace: Trace, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The result of a replay, the role changes, and the workers as they were at the end."""
    with tempfile.TemporaryDirectory() as folder, RunningMesh(*options) as mesh:
        file, found = Path(folder) / "trace.jsonl", Path(folder) / "result.json"
        own.write(trace, file)
        asked = ("--base-url", mesh.url, "--trace", str(file), "--slo", SLO, "--json", str(found))
        done = subprocess.run([sys.executable, "-m", "loadgen", "replay", *asked], capture_output=True, text=True)
        if not found.exists():
            raise SystemExit(done.stdout + done.stderr)
        seen = mesh.get("/mesh")
        return json.loads(found.read_text()), seen["role_changes"], seen["workers"]


def paced(prompts: int, tokens: int, pools: str) -> tuple[str, ...]:
    return (
        "--engine", "paced", "--paced-model", PACED, "--prompt-workers", str(prompts), "--token-workers", str(tokens),
        "--pools", pools, "--tbt-target-s", str(TBT_S), "--ttft-target-s", str(TTFT_S), "--admission", "off",
        "--log-level", "warning",
    )  # fmt: skip


def simulated(trace: Trace, prompts: int, tokens: int, policy: str, **machine: Any) -> dict[str, Any]:
    one = {
        "type": "custom", "prefill_ms": list(PREFILL_MS), "decode_ms": list(DECODE_MS), "kv_tokens": 65_536,
        "kv_bytes_per_token": 64, "layers": 4, **machine,
    }  # fmt: skip
    machines = [one | {"role": role, "count": n} for role, n in (("prompt", prompts), ("token", tokens)) if n]
    spec = {"model": "paced", "machines": machines, "policy": policy, "known_answers": True}
    run = simulate(trace, Cluster.parse(spec | {"tbt_target_s": TBT_S, "ttft_target_s": TTFT_S})).run
    return result(run, slo=Slo.parse(SLO), seed=None)


def row(table: Table, name: str, found: dict[str, Any], model: dict[str, Any], note: str) -> None:
    cells = [f"{found[m][q]:.3f} / {model[m][q]:.3f}" for m, q in QUANTILES]
    attained = f"{found['attainment']:.0%} / {model['attainment']:.0%}"
    table.add_row(name, str(found["requests"]["failed"]), attained, f"{found['goodput_rps']:.2f}", *cells, note)


def new_table(title: str) -> Table:
    table = Table(title=f"{title} (live / simulated)", box=None)
    headings = ("", "failed", "SLO met", "goodput/s", "TTFT P50 s", "TTFT P90", "TPOT P50 s", "TPOT P90", "")
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right")
    return table


def shift(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    seconds = given.seconds
    splits = [int(text) for text in given.splits.split(",")]
    figures: dict[str, Any] = {}
    for number in range(given.rounds):
        parts = [
            ("azure-code", CODE_RPS, seconds),
            ("azure-conv", CONV_RPS, seconds),
            ("azure-code", CODE_RPS, seconds),
        ]
        trace = phases(parts, given.seed + number)
        table = new_table(f"{trace.name}, {seconds:g} s each, {len(trace.requests)} requests, round {number + 1}")
        best = 0.0
        modes = [("moving", 4, "moving"), *((f"{p} + {WORKERS - p}", p, "fixed") for p in splits)]
        for name, prompts, pools in modes:
            found, changes, _ = live(trace, *paced(prompts, WORKERS - prompts, pools))
            model = simulated(trace, prompts, WORKERS - prompts, pools)
            row(table, name, found, model, f"{len(changes)} role changes" if pools == "moving" else "")
            figures[f"{number} {name}"] = {"live": found, "simulated": model, "role_changes": changes}
            best = best if pools == "moving" else max(best, found["goodput_rps"])
        console.print(table)
        ratio = figures[f"{number} moving"]["live"]["goodput_rps"] / best
        console.print(f"goodput of moving pools: {ratio:.2f} x the best fixed split\n")
        figures[f"{number} ratio"] = ratio
    return figures


def agree(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A steady mix at about two thirds of what 8 workers bear."""
    figures: dict[str, Any] = {}
    table = new_table(f"mix of code and conversations, {given.requests} requests")
    modes = (("fixed 4 + 4", "fixed"), ("moving", "moving"))
    ratios: dict[str, list[dict[str, float]]] = {name: [] for name, _ in modes}
    for seed in range(given.seed, given.seed + given.rounds):
        mixed = mix(given.requests, seed)
        for name, pools in modes:
            found, changes, _ = live(mixed, *paced(4, WORKERS - 4, pools))
            model = shifted_median(mixed, pools)
            ratios[name].append({f"{m} {q}": model[m][q] / found[m][q] for m, q in QUANTILES})
            row(table, f"{name}, trace {seed}", found, model, apart(ratios[name][-1:]))
            figures[f"{name} {seed}"] = {"live": found, "simulated": model, "role_changes": changes}
    console.print(table)
    for name, _ in modes:
        console.print(f"{name}, median of {given.rounds} traces: {apart(ratios[name])}")
    return figures


def mix(requests: int, seed: int) -> Trace:
    seconds = requests / 6.0
    both = phases([("azure-code", 3.0, seconds), ("azure-conv", 3.0, seconds)], seed)
    return at_times(both, [r.at_s if r.at_s < seconds else r.at_s - seconds for r in both.requests])


def at_times(trace: Trace, times: list[float]) -> Trace:
    pairs = sorted(zip(times, trace.requests, strict=True), key=lambda pair: pair[0])
    moved = (Request(at_s=at, prompt_tokens=r.prompt_tokens, output_tokens=r.output_tokens) for at, r in pairs)
    return Trace(name="mix", requests=tuple(moved))


def shifted_median(trace: Trace, pools: str) -> dict[str, Any]:
    """Medians of the simulated figures over arrivals each up to SHIFT_S late."""
    runs = []
    for number in range(SHIFTED_RUNS):
        late = np.random.default_rng(number).uniform(0, SHIFT_S, len(trace.requests))
        times = [r.at_s + float(by) for r, by in zip(trace.requests, late, strict=True)]
        runs.append(simulated(at_times(trace, times), 4, WORKERS - 4, pools))
    middle: dict[str, Any] = {m: {} for m, _ in QUANTILES}
    for m, q in QUANTILES:
        middle[m][q] = float(np.median([run[m][q] for run in runs]))
    return middle | {"attainment": float(np.median([run["attainment"] for run in runs]))}


def apart(ratios: list[dict[str, float]]) -> str:
    """The median over runs of simulated / live, and whether all are within AGREE."""
    middle = {key: float(np.median([one[key] for one in ratios])) - 1 for key in ratios[0]}
    agrees = all(abs(value) <= AGREE[key[-3:]] for key, value in middle.items())
    return ("agree: " if agrees else "apart: ") + ", ".join(f"{key} {value:+.0%}" for key, value in middle.items())


def real(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The real model, 1 + 1 workers on the cores of this machine. First a steady load, simulated with the costs that
    the workers fitted meanwhile, and without lending of cores, which the simulator does not know; then the shifting
    load with pools that move and fixed ones: two workers share the same cores whatever their roles, which hides most
    of the effect."""
    steady = phases([("azure-conv", REAL_RPS, given.requests / REAL_RPS)], given.seed)
    found, _, workers = live(steady, "--pools", "fixed", "--lend-cores", "off", "--log-level", "warning")
    fits = {worker["role"]: worker["cost_model"] for worker in workers}
    model = simulated(
        steady, 1, 1, "fixed", prefill_ms=fits["prompt"]["prefill_ms"], decode_ms=fits["token"]["decode_ms"],
        kv_bytes_per_token=23_040, layers=30,
    )  # fmt: skip
    table = new_table("real model, 1 + 1 workers")
    ratio = {f"{m} {q}": model[m][q] / found[m][q] for m, q in QUANTILES}
    row(table, f"steady, {len(steady.requests)} requests", found, model, apart([ratio]))
    figures: dict[str, Any] = {"steady": {"live": found, "simulated": model}, "fits": fits}
    parts = [(name, REAL_RPS, given.seconds) for name in ("azure-code", "azure-conv", "azure-code")]
    shifting = phases(parts, given.seed)
    for pools in ("moving", "fixed"):
        found, changes, _ = live(shifting, "--pools", pools, "--log-level", "warning")
        row(table, f"shift, {pools}", found, found, f"{len(changes)} role changes; live twice")
        figures[pools] = {"live": found, "role_changes": changes}
    console.print(table)
    for role, fit in fits.items():
        console.print(f"{role}: {fit}", highlight=False)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shift", "agree", "real"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--splits", default="4,5,6", help="prompt workers of the fixed splits")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = {"shift": shift, "agree": agree, "real": real}[given.what](given, Console(width=150))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
