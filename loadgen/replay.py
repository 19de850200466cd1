"""`loadgen replay`: one trace, one server, one result that can be trusted or says that it cannot.

options → trace → server: probed, warm, its idle speed if asked → client processes → records → measures → reports
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from loadgen.client import options as client_options
from loadgen.client.connect import connect
from loadgen.goodput import check as check_rate
from loadgen.goodput import find_goodput
from loadgen.measure.gates import INVALID
from loadgen.measure.result import Result, result
from loadgen.measure.slo import SLO_HELP, Slo
from loadgen.record import Run
from loadgen.report.files import write_json, write_records
from loadgen.report.groups import Entry
from loadgen.report.page import check_outputs, write_page
from loadgen.report.summary import print_summary
from loadgen.traces import load
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import add_arguments
from loadgen.watched import idle_speed, replay_watched, suited, warm_up
from shared.errors import ConfigError
from shared.runtime.options import Options


def replay(arguments: Sequence[str], console: Console) -> int:
    given = _options().read(arguments)
    slo = Slo.parse(given.slo) if given.slo else None
    trace = load.from_arguments(given)
    _check(given, trace)
    with console.status(f"asking {given.base_url} what it can ..."):
        server = connect(given.base_url, given, patience_s=given.ready_check_timeout_sec)
    trace = suited(trace, [server])
    settings = client_options.settings(given, stop_when_saturated=given.stop_when_saturated)
    warm_up(server, trace, given.num_warmups, console, deadline_s=given.deadline)
    idle = idle_speed(server, trace, console, deadline_s=given.deadline) if slo and slo.splitwise else None

    def measure(one: Trace) -> tuple[Run, Result]:
        run = replay_watched(server, one, settings, console, title=one.name)
        return run, result(run, slo=slo, idle=idle, seed=given.seed, count_tolerance=given.count_tolerance)

    run, measured = measure(trace)
    if given.find_goodput and measured["valid"]:
        measured["goodput_search"] = _goodput(trace, measured, measure, console)
    print_summary(measured, console)
    if given.json:
        write_json(given.json, measured)
    if given.records:
        write_records(given.records, run)
    if given.html:
        write_page(given.html, [Entry(target=server.base_url, result=measured, run=run)])
    return 0 if measured["valid"] else INVALID


def _check(given: argparse.Namespace, trace: Trace) -> None:
    """What would otherwise be found out when everything is measured."""
    if given.find_goodput:
        check_rate(trace)
        if not given.slo:
            raise ConfigError("--find-goodput needs --slo: goodput is the rate at which it is met", param="slo")
    check_outputs(given.json, given.records, given.html)


def _goodput(
    trace: Trace, first: Result, measure: Callable[[Trace], tuple[Run, Result]], console: Console
) -> Result | None:
    """None when Ctrl-C ended it: the first result is worth more than the search."""

    def uninterrupted(one: Trace) -> Result:
        run, found = measure(one)
        if run.interrupted:
            raise KeyboardInterrupt
        return found

    try:
        return find_goodput(trace, first, uninterrupted, console.print)
    except KeyboardInterrupt:
        console.print("the search for goodput was interrupted; this is the run at the given rate")
        return None


def _options() -> Options:
    options = Options("python -m loadgen replay", "Send a trace to an OpenAI-compatible server and say how it went.")
    options.add_argument("--base-url", required=True, help="of the server, e.g. http://127.0.0.1:8000")
    add_arguments(options)
    client_options.add_arguments(options)
    group = options.add_argument_group("what is made of it")
    group.add_argument("--slo", metavar="LIMITS", help=SLO_HELP)
    group.add_argument(
        "--find-goodput",
        action="store_true",
        help="repeat at other rates: the highest that keeps --slo for 90, 99 %%",
    )
    group.add_argument("--stop-when-saturated", action="store_true", help="end a ramp when requests pile up")
    group.add_argument("--json", type=Path, metavar="FILE", help="the full result")
    group.add_argument("--records", type=Path, metavar="FILE", help="a line of JSON per request")
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots that works offline")
    return options
