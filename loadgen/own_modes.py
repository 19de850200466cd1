"""`compare --self`: is disaggregation worth it for this traffic, on this machine?

    start → speed of the idle mesh → a rate and an SLO that this machine can be asked → the best variant of each mode
    from a printed sweep → the comparison of the two winners → an answer

Both modes get all cores. A mode's variants differ in how cores are dealt among its workers and in how many prompt
tokens are computed together.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loadgen.bearable import beginning, load_for
from loadgen.client import options as client_options
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.report.measures import verdict
from loadgen.rounds import Contest, alternate, connected
from loadgen.targets import Target, serving
from loadgen.traces.trace import Trace

COLOCATED, DISAGGREGATED = "colocated", "disaggregated"
SWEEP_S = 20.0  # of each variant
# Prompt tokens computed together; colocated ones are what stalls decodes, and small ones the known remedy.
CHUNKS = {COLOCATED: (2048, 1024, 512, 256, 128, 64), DISAGGREGATED: (2048, 512)}
_NO_POOLS = ("--prompt-workers", "0", "--token-workers", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run a mode: `options` of `splitmesh up`."""

    mode: str
    label: str
    options: tuple[str, ...]

    def target(self, more: Sequence[str]) -> Target:
        up = (sys.executable, "-m", "services.local", "up", "--port", "{port}", *self.options, *more)
        return Target(name=self.mode, command=up)


def variants(cores: int) -> list[Variant]:
    """The first of each mode is its plainest. All use the same number of cores, an even one."""
    each = max(1, cores // 2)
    cores = 2 * each
    layouts: dict[str, list[tuple[str, tuple[str, ...]]]] = {
        COLOCATED: [
            (f"1 worker, {cores} threads", ("--mixed-workers", "1", "--threads", str(cores))),
            (f"2 workers, {each} threads each", ("--mixed-workers", "2", "--threads", str(each))),
        ],
        DISAGGREGATED: [(f"1 + 1 workers, {each} threads each", ("--threads", str(each)))],
    }
    return [
        Variant(
            mode=mode,
            label=f"{label}, batches of {tokens:,} tokens",
            options=(*(_NO_POOLS if mode == COLOCATED else ()), *options, "--max-num-batched-tokens", str(tokens)),
        )
        for mode, choices in layouts.items()
        for label, options in choices
        for tokens in CHUNKS[mode]
    ]


def contest(given: argparse.Namespace, console: Console) -> Contest:
    """The two winners, and a load that this machine can bear. Options that were given decide; the rest is measured."""
    more = shlex.split(given.mesh_options)
    chosen = {mode: next(v for v in _variants() if v.mode == mode) for mode in (COLOCATED, DISAGGREGATED)}
    with serving(chosen[DISAGGREGATED].target(more)) as idle_mesh:
        server = connected(idle_mesh, given, console)
        trace, slo, idle = load_for(server, given, console)
    if not given.quick:
        chosen = _sweep(beginning(trace, SWEEP_S), slo, idle, given, more, console)
    return Contest(
        targets=[chosen[mode].target(more) for mode in (COLOCATED, DISAGGREGATED)],
        trace=trace,
        slo=slo,
        idle=idle,
        notes=[f"{mode}: {variant.label}" for mode, variant in chosen.items()],
    )


def _variants() -> list[Variant]:
    return variants(len(os.sched_getaffinity(0)))


def _sweep(
    trace: Trace, slo: Slo, idle: IdleSpeed, given: argparse.Namespace, more: Sequence[str], console: Console
) -> dict[str, Variant]:
    """The variant of each mode that meets the SLO for most requests; among equals the one with the shortest E2E."""
    table = Table(title=f"sweep: {len(trace.requests)} requests each, {slo.text}")
    for heading in ("mode", "variant", "SLO met", "TTFT P50 s", "TBT P99 s", "E2E s"):
        table.add_column(heading)
    best: dict[str, tuple[tuple[float, float], Variant]] = {}
    settings = client_options.settings(given)
    for variant in _variants():
        with serving(variant.target(more)) as target:
            servers = {variant.mode: connected(target, given, console)}
            console.print(f"sweep: {variant.mode}, {variant.label}", highlight=False)
            runs = alternate([target], servers, trace, settings, repeats=1, warmups=given.num_warmups, console=console)
        found: Any = result(runs[variant.mode][0], slo=slo, idle=idle, count_tolerance=given.count_tolerance)
        cells = (found["ttft_s"]["p50"], found["itl_s"]["p99"], found["e2e_s"]["mean"])
        attained = found["attainment"] or 0.0
        table.add_row(variant.mode, variant.label, f"{attained:.0%}", *(f"{cell or 0:.3f}" for cell in cells))
        rank = (attained, -(found["e2e_s"]["mean"] or float("inf")))
        if variant.mode not in best or rank > best[variant.mode][0]:
            best[variant.mode] = (rank, variant)
    console.print(table)
    return {mode: variant for mode, (rank, variant) in best.items()}


TOLD = {
    "ttft_s.p50": "TTFT P50", "ttft_s.p99": "TTFT P99", "itl_s.p99": "TBT P99", "max_gap_s.p50": "largest gap P50",
    "tpot_s.p50": "TPOT P50", "e2e_s.p50": "E2E P50", "output_tokens_per_s": "tokens per second",
}  # fmt: skip


def answer(comparison: dict[str, Any]) -> list[str]:
    """In sentences, of what is significant only."""
    question = f"Is disaggregation worth it for {comparison['trace']} on this machine?"
    if not all(one["valid"] for results in comparison["targets"].values() for one in results):
        return [f"{question} It cannot be said: there are invalid runs."]
    ratios = comparison["ratios"][f"{DISAGGREGATED}/{COLOCATED}"]
    told: dict[str, list[str]] = {"better": [], "worse": []}
    for key, name in TOLD.items():
        ratio = ratios.get(key)
        if ratio and (word := verdict(key, ratio)) in told:
            told[word].append(f"{name} {ratio['ratio']:.2f}x")
    kept = {
        mode: float(np.mean([one["attainment"] or 0.0 for one in results]))
        for mode, results in comparison["targets"].items()
    }
    lines = [
        f"{question} {_verdict(ratios.get('attainment'), told)}.",
        f"SLO {comparison['slo']} met by {kept[DISAGGREGATED]:.0%} of requests, colocated by {kept[COLOCATED]:.0%}.",
    ]
    lines += [f"{kind.capitalize()} than colocated: {', '.join(names)}." for kind, names in told.items() if names]
    if len(comparison["targets"][COLOCATED]) == 1:
        lines.append("One run of each does not show how much runs differ; --repeats 3 does.")
    return lines


def _verdict(attainment: dict[str, Any] | None, told: dict[str, list[str]]) -> str:
    """By the SLO if it tells the two apart, else by what else differs."""
    match verdict("attainment", attainment) if attainment else "same":
        case "better":
            return "Yes: it meets the SLO more often"
        case "worse":
            return "No: it meets the SLO less often"
        case _ if told["better"] and told["worse"]:
            return "It depends on what you want"
        case _ if told["better"] or told["worse"]:
            return "Yes" if told["better"] else "No"
        case _:
            return "There is little between them"
