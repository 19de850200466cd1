"""`loadgen simulate`: one trace, one cluster that is only described, the result a replay would give.

options → trace and cluster → for chunked prefill, the best chunk size → the world → measures → reports
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import process_time

from rich.console import Console

from loadgen.measure.gates import INVALID
from loadgen.measure.slo import SLO_HELP, Slo
from loadgen.report.files import write_json
from loadgen.report.groups import Entry
from loadgen.report.page import check_outputs, write_page
from loadgen.report.summary import print_summary
from loadgen.sim.chunk_size import best_chunk
from loadgen.sim.cluster import Cluster
from loadgen.sim.kinds import CostModel, Policy
from loadgen.sim.outcome import SimRun, simulation_result, write_csv
from loadgen.sim.shown import ProgressBar, print_simulation
from loadgen.sim.world import simulate
from loadgen.traces import load
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import add_arguments
from shared.runtime.options import Options

DEFECTS = "as the published simulator: decodes hardly depend on the batch, KV is sent in one piece without contention"


def simulate_command(arguments: Sequence[str], console: Console) -> int:
    given = _options().read(arguments)
    slo = Slo.parse(given.slo) if given.slo else None
    cluster = Cluster.load(given.cluster)
    trace = load.from_arguments(given)
    check_outputs(given.json, given.records, given.html)
    notes = [f"cost model splitwise-sim: {DEFECTS}"] if cluster.cost_model is CostModel.SPLITWISE_SIM else []
    chunk_tokens = None
    if cluster.policy is Policy.CHUNKED:
        chunk_tokens, note = best_chunk(trace, cluster, console=console)
        notes.append(note)
    simulated, cpu_s = _simulated(trace, cluster, chunk_tokens, console)
    measured = simulation_result(simulated, cluster, slo=slo, cpu_s=cpu_s)
    measured["notes"] += notes
    print_summary(measured, console)
    print_simulation(measured, console)
    _write(given, measured, simulated)
    return 0 if measured["valid"] else INVALID


def _simulated(trace: Trace, cluster: Cluster, chunk_tokens: int | None, console: Console) -> tuple[SimRun, float]:
    """And the CPU seconds it took."""
    machines = sum(kind.count for kind in cluster.machines)
    title = f"{trace.name}: {len(trace.requests):,} requests over {trace.span_s:,.0f} s to {machines:,} machines"
    console.print(title, highlight=False, markup=False)
    with ProgressBar(console, "simulating") as show:
        began_s = process_time()
        simulated = simulate(trace, cluster, on_progress=show, chunk_tokens=chunk_tokens)
        return simulated, process_time() - began_s


def _write(given: argparse.Namespace, measured: dict[str, object], simulated: SimRun) -> None:
    if given.json:
        write_json(given.json, measured)
    if given.records:
        write_csv(given.records, simulated)
    if given.html:
        run = simulated.run
        entry = Entry(target=run.target, result=measured, run=run)
        write_page(given.html, [entry], title=f"Simulation of {run.trace}")


def _options() -> Options:
    options = Options("python -m loadgen simulate", "Send a trace to a cluster that is only described.")
    add_arguments(options)
    options.add_argument("--cluster", required=True, type=Path, metavar="FILE", help="YAML: model, machines, policy")
    group = options.add_argument_group("what is made of it")
    group.add_argument("--slo", metavar="LIMITS", help=SLO_HELP)
    group.add_argument("--json", type=Path, metavar="FILE", help="the full result")
    group.add_argument("--records", type=Path, metavar="FILE", help="a line of CSV per request")
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots that works offline")
    return options
