"""`loadgen replay`: one trace, one server, one result that can be trusted or says that it cannot.

options → trace → server: probed, warm, its idle speed if asked → client processes → records → measures → reports
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen.client import options as client_options
from loadgen.client.connect import connect
from loadgen.goodput import find_goodput
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.record import Run
from loadgen.report.files import write_json, write_records
from loadgen.report.groups import Entry
from loadgen.report.page import write_page
from loadgen.report.summary import print_summary
from loadgen.traces import load
from loadgen.traces.scale import fit
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import add_arguments
from loadgen.watched import idle_speed, replay_watched, warm_up
from shared.errors import ConfigError
from shared.runtime.options import Options

INVALID = 3  # exit code


def replay(arguments: Sequence[str], console: Console) -> int:
    given = _options().read(arguments)
    slo = Slo.parse(given.slo) if given.slo else None
    if given.find_goodput and slo is None:
        raise ConfigError("--find-goodput needs --slo: goodput is the rate at which it is met", param="slo")
    trace = load.from_arguments(given)
    server = connect(given.base_url, given, patience_s=given.ready_check_timeout_sec)
    trace = fit(trace, server.max_model_len) if server.max_model_len else trace
    settings = client_options.settings(given, stop_when_saturated=given.stop_when_saturated)
    warm_up(server, trace, given.num_warmups, console, deadline_s=given.deadline)
    idle = idle_speed(server, trace, console, deadline_s=given.deadline) if slo and slo.splitwise else None

    def measure(one: Trace) -> tuple[Run, dict[str, Any]]:
        run = replay_watched(server, one, settings, console, title=one.name)
        return run, result(run, slo=slo, idle=idle, seed=given.seed, count_tolerance=given.count_tolerance)

    run, measured = measure(trace)
    if given.find_goodput and not run.invalid_reasons:
        measured["goodput_search"] = find_goodput(trace, measured, lambda one: measure(one)[1], console.print)
    print_summary(measured, console)
    if given.json:
        write_json(given.json, measured)
    if given.records:
        write_records(given.records, run)
    if given.html:
        write_page(given.html, [Entry(target=server.base_url, result=measured, run=run)])
    return 0 if measured["valid"] else INVALID


def _options() -> Options:
    options = Options("python -m loadgen replay", "Send a trace to an OpenAI-compatible server and say how it went.")
    options.add_argument("--base-url", required=True, help="of the server, e.g. http://127.0.0.1:8000")
    add_arguments(options)
    client_options.add_arguments(options)
    group = options.add_argument_group("what is made of it")
    group.add_argument("--slo", help="e.g. ttft=3,tbt=0.15 in seconds (also e2e, second, max_gap), or splitwise")
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
