"""`loadgen compare`: the same schedule on two or more targets in turn; ratios, and whether they mean anything.

    targets (started if they are commands) → probed, warm → A B A B … → ratios with intervals → reports

With `--self` the first targets are this mesh, disaggregated and colocated with equal cores (see own_modes).
"""

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen import own_modes
from loadgen.bearable import load_for
from loadgen.client import options as client_options
from loadgen.measure.gates import INVALID
from loadgen.measure.ratio import ratios
from loadgen.measure.result import result
from loadgen.measure.slo import SLO_HELP, Slo
from loadgen.record import Run
from loadgen.report.comparison import print_comparison
from loadgen.report.files import write_json
from loadgen.report.groups import Entry
from loadgen.report.page import check_outputs, write_page
from loadgen.rounds import Contest, alternate, connected
from loadgen.targets import Target, serving
from loadgen.traces import load
from loadgen.traces.wanted import add_arguments
from loadgen.watched import idle_speed, suited
from shared.errors import ConfigError
from shared.runtime.options import Options, typed
from shared.runtime.parsers import whole_number

REPEATS = 3

Comparison = dict[str, Any]


def compare(arguments: Sequence[str], console: Console) -> int:
    given = _options().read(arguments)
    targets = _targets(given)
    if given.slo:
        Slo.parse(given.slo)
    check_outputs(given.json, None, given.html)
    contest = own_modes.contest(given, targets, console) if given.own_mesh else _contest(given, targets, console)
    runs, contest = _run(contest, given, console)
    comparison = _compared(contest, runs, given)
    if given.own_mesh:
        comparison["answer"] = own_modes.answer(comparison)
    print_comparison(comparison, console)
    if given.json:
        write_json(given.json, comparison)
    if given.html:
        entries = [
            Entry(target=name, result=one, run=run)
            for name, results in comparison["targets"].items()
            for one, run in zip(results, runs[name], strict=True)
        ]
        write_page(given.html, entries, comparison=comparison)
    valid = all(one["valid"] for results in comparison["targets"].values() for one in results)
    return 0 if valid else INVALID


def _targets(given: argparse.Namespace) -> list[Target]:
    """Those that were named. Raises ConfigError when there is nothing to compare, or two have one name."""
    targets = [Target.parse(text) for text in given.targets]
    names = [*(own_modes.MODES if given.own_mesh else ()), *(target.name for target in targets)]
    if len(names) < 2:
        raise ConfigError("compare needs --self, or at least two targets with different names", param="target")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"compare: two targets are named {twice[0]}", param="target")
    return targets


def _contest(given: argparse.Namespace, targets: list[Target], console: Console) -> Contest:
    """A trace is sent as recorded; without one the first target shows what it bears."""
    if given.trace:
        slo = Slo.parse(given.slo) if given.slo else None
        return Contest(targets=targets, trace=load.from_arguments(given), slo=slo)
    with serving(targets[0]) as first:
        server = connected(first, given, console)
        trace, slo, idle = load_for(server, given, console)
    return Contest(targets=targets, trace=trace, slo=slo, idle=idle)


def _run(contest: Contest, given: argparse.Namespace, console: Console) -> tuple[dict[str, list[Run]], Contest]:
    """The runs of each target, and the contest with its trace as it was sent."""
    with ExitStack() as stack:
        targets = [stack.enter_context(serving(target)) for target in contest.targets]
        servers = {target.name: connected(target, given, console) for target in targets}
        trace = suited(contest.trace, list(servers.values()))
        idle = contest.idle if contest.slo and contest.slo.splitwise else None
        if contest.slo and contest.slo.splitwise and idle is None:
            idle = idle_speed(servers[targets[0].name], trace, console, deadline_s=given.deadline)
        runs = alternate(
            targets, servers, trace, client_options.settings(given), warmups=given.num_warmups, console=console,
            repeats=given.repeats or (1 if given.quick else REPEATS),
        )  # fmt: skip
    return runs, dataclasses.replace(contest, trace=trace, idle=idle)


def _compared(contest: Contest, runs: dict[str, list[Run]], given: argparse.Namespace) -> Comparison:
    slo, idle, seed = contest.slo, contest.idle, given.seed
    return {
        "baseline": next(iter(runs)),
        "trace": contest.trace.name,
        "schedule_sha256": contest.trace.sha256,
        "slo": slo.text if slo else None,
        "notes": [*contest.notes, *contest.trace.notes],
        "targets": {
            name: [result(run, slo=slo, idle=idle, seed=seed, count_tolerance=given.count_tolerance) for run in own]
            for name, own in runs.items()
        },
        "ratios": {
            f"{one}/{other}": ratios(runs[other], runs[one], slo=slo, idle=idle, seed=seed)
            for one, other in contest.pairs()
        },
    }


def _options() -> Options:
    options = Options(
        "python -m loadgen compare",
        "Send the same trace to several servers in turn, and say what differs and whether it means anything.",
    )
    options.add_argument(
        "targets", nargs="*", metavar="NAME=URL", help="or NAME='COMMAND', started and stopped, its port being {port}"
    )
    options.add_argument(
        "--self", action="store_true", dest="own_mesh",
        help="this mesh, disaggregated and colocated with equal cores: is disaggregation worth it for this trace here? "
        "targets that are named besides are compared too",
    )  # fmt: skip
    options.add_argument(
        "--quick", action="store_true", help="short; one run each if --repeats is not given; nothing is tuned"
    )
    options.add_argument("--mesh-options", default="", metavar="OPTIONS", help="with --self: for each `splitmesh up`")
    options.add_argument("--repeats", type=typed(whole_number(1)), metavar="N", help="runs of each (default: 3)")
    add_arguments(options, required=False)
    client_options.add_arguments(options)
    group = options.add_argument_group("what is made of it")
    group.add_argument("--slo", metavar="LIMITS", help=f"{SLO_HELP}: over the idle first target")
    group.add_argument("--json", type=Path, metavar="FILE", help="the full result")
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots that works offline")
    return options
