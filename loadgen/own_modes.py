"""`compare --self`: is disaggregation worth it for this traffic, on this machine?

    start → speed of the idle mesh → a rate and an SLO that this machine can be asked → the best variant of each mode
    from a printed sweep → the comparison of the two winners, and of other servers if some are named → an answer

Both modes get all cores. A mode's variants differ in how cores are dealt among its workers and in how many prompt
tokens are computed together. The sweep asks all of them for a short time, and the best of each mode for longer.
"""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
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

MODES = COLOCATED, DISAGGREGATED = "colocated", "disaggregated"
FIRST_S, SWEEP_S = 10.0, 20.0  # of each variant, then of the finalists
FINALISTS = 2  # of each mode
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What the sweep found of a variant. `attained`: the share of requests that met the SLO. `e2e_s`: the mean, or
    infinity where nothing completed."""

    variant: Variant
    attained: float
    e2e_s: float


def ranked(tried: Sequence[Tried]) -> list[Variant]:
    """The one that meets the SLO for most requests first; among equals the one with the shortest E2E."""
    return [one.variant for one in sorted(tried, key=lambda one: (-one.attained, one.e2e_s))]


def winners(every: Sequence[Variant], trace: Trace, tried: Callable[[Variant, Trace], Tried]) -> dict[str, Variant]:
    """By mode. Of a mode with more variants than FINALISTS all are tried with the first FIRST_S of the trace; its
    finalists are tried with SWEEP_S of it, which decides."""
    short, longer = (beginning(trace, span_s) for span_s in (FIRST_S, SWEEP_S))
    best: dict[str, Variant] = {}
    for mode in MODES:
        left = [variant for variant in every if variant.mode == mode]
        if len(left) > FINALISTS:
            left = ranked([tried(variant, short) for variant in left])[:FINALISTS]
        best[mode] = ranked([tried(variant, longer) for variant in left])[0]
    return best


def contest(given: argparse.Namespace, peers: Sequence[Target], console: Console) -> Contest:
    """The two winners and the peers, and a load that this machine can bear. Options that were given decide; the rest
    is measured."""
    more = shlex.split(given.mesh_options)
    chosen = {mode: next(v for v in _variants() if v.mode == mode) for mode in MODES}
    for peer in peers:  # who cannot be asked says so before the sweep, not after it
        with serving(peer) as alone:
            connected(alone, given, console)
    with serving(chosen[DISAGGREGATED].target(more)) as idle_mesh:
        server = connected(idle_mesh, given, console)
        trace, slo, idle = load_for(server, given, console)
    if not given.quick:
        sweep = _Sweep(given, more, slo, idle, console)
        chosen = winners(_variants(), trace, sweep.tried)
        console.print(sweep.table)
    return Contest(
        targets=[*(chosen[mode].target(more) for mode in MODES), *peers],
        subject=DISAGGREGATED,
        trace=trace,
        slo=slo,
        idle=idle,
        notes=[f"{mode}: {variant.label}" for mode, variant in chosen.items()],
    )


def _variants() -> list[Variant]:
    return variants(len(os.sched_getaffinity(0)))


class _Sweep:
    """One server at a time; every run is a row of the table."""

    def __init__(
        self, given: argparse.Namespace, more: Sequence[str], slo: Slo, idle: IdleSpeed, console: Console
    ) -> None:
        self._given, self._more, self._slo, self._idle, self._console = given, more, slo, idle, console
        self.table = Table(title=f"sweep: {slo.text}")
        for heading in ("mode", "variant", "requests", "SLO met", "TTFT P50 s", "TBT P99 s", "E2E s"):
            self.table.add_column(heading)

    def tried(self, variant: Variant, trace: Trace) -> Tried:
        given, console = self._given, self._console
        with serving(variant.target(self._more)) as target:
            servers = {variant.mode: connected(target, given, console)}
            console.print(f"sweep: {variant.mode}, {variant.label}", highlight=False)
            runs = alternate(
                [target], servers, trace, client_options.settings(given), repeats=1, warmups=given.num_warmups,
                console=console,
            )  # fmt: skip
        found: Any = result(
            runs[variant.mode][0], slo=self._slo, idle=self._idle, count_tolerance=given.count_tolerance
        )
        cells = (found["ttft_s"]["p50"], found["itl_s"]["p99"], found["e2e_s"]["mean"])
        tried = Tried(variant=variant, attained=found["attainment"] or 0.0, e2e_s=cells[-1] or math.inf)
        figures = (f"{len(trace.requests):,}", f"{tried.attained:.0%}", *(f"{cell or 0:.3f}" for cell in cells))
        self.table.add_row(variant.mode, variant.label, *figures)
        return tried


TOLD = {
    "ttft_s.p50": "TTFT P50", "ttft_s.p99": "TTFT P99", "itl_s.p99": "TBT P99", "max_gap_s.p50": "largest gap P50",
    "tpot_s.p50": "TPOT P50", "e2e_s.p50": "E2E P50", "output_tokens_per_s": "tokens per second",
}  # fmt: skip


def answer(comparison: dict[str, Any]) -> list[str]:
    """In sentences, of what is significant only: against colocated, then against each other server."""
    targets = comparison["targets"]
    trusted = {name: all(one["valid"] for one in results) for name, results in targets.items()}
    lines: list[str] = []
    for rival in targets:
        if rival == DISAGGREGATED:
            continue
        question = f"And rather than {rival}?"
        if rival == COLOCATED:
            question = f"Is disaggregation worth it for {comparison['trace']} on this machine?"
        if trusted[rival] and trusted[DISAGGREGATED]:
            lines += _told(question, rival, comparison)
        else:
            lines.append(f"{question} It cannot be said: there are invalid runs.")
    if len(targets[COLOCATED]) == 1 and sum(trusted.values()) >= 2 and trusted[DISAGGREGATED]:
        lines.append("One run of each does not show how much runs differ; --repeats 3 does.")
    return lines


def _told(question: str, rival: str, comparison: dict[str, Any]) -> list[str]:
    ratios = comparison["ratios"][f"{DISAGGREGATED}/{rival}"]
    told: dict[str, list[str]] = {"better": [], "worse": []}
    for key, name in TOLD.items():
        ratio = ratios.get(key)
        if ratio and (word := verdict(key, ratio)) in told:
            told[word].append(f"{name} {ratio['ratio']:.2f}x")
    kept, other = (
        float(np.mean([one["attainment"] or 0.0 for one in comparison["targets"][name]]))
        for name in (DISAGGREGATED, rival)
    )
    return [
        f"{question} {_verdict(ratios.get('attainment'), told)}.",
        f"SLO {comparison['slo']} met by {kept:.0%} of requests, {rival} by {other:.0%}.",
        *(f"{kind.capitalize()} than {rival}: {', '.join(names)}." for kind, names in told.items() if names),
    ]


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
