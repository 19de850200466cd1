"""What one client process bears: server-sent events per second, each its own write at the server.

    python -m tests.bench.client [--streams 256] [--gap-ms 20] [--tokens 400] [--json FILE]

The server (the scripted one of the tests) has a core, client and command together have another; without a second core
they share one. Prediction: a wake-up per event costs about 30 µs, so 12,800 events/s take under half of a core, and the
client sends within a few milliseconds of the schedule (the gate of every run: P99 <= 5 ms).
"""

import argparse
import json
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loadgen.client.fleet import Settings, replay
from loadgen.client.server import COMPLETIONS, Form, Server
from loadgen.measure.result import result
from loadgen.traces.trace import Request, Trace
from tests.support.fake_openai import MODEL, FakeOpenAI, Script

RISE_S, SHORT_RPS = 1.0, 50.0
EXTRAS = ("ignore_eos", "min_tokens", "return_token_ids")


def serve(pipe: Connection, core: int, gap_s: float) -> None:
    os.sched_setaffinity(0, {core})
    with FakeOpenAI(lambda number: Script(ttft_s=gap_s, gap_s=gap_s)) as fake:
        pipe.send(fake.url)
        pipe.recv()


def schedule(streams: int, tokens: int, gap_s: float) -> Trace:
    """Long streams that begin within RISE_S, and short requests all the while they run: their lag is measured."""
    length_s = tokens * gap_s
    long = [Request(at_s=n * RISE_S / streams, prompt_tokens=64, output_tokens=tokens) for n in range(streams)]
    short = [
        Request(at_s=RISE_S + n / SHORT_RPS, prompt_tokens=64, output_tokens=2)
        for n in range(int((length_s - RISE_S) * SHORT_RPS))
    ]
    return Trace(name="streams", requests=(*long, *short))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(theirs, cores[-1], args.gap_ms / 1e3), daemon=True)
    server.start()
    os.sched_setaffinity(0, {cores[0]})
    where = Server(
        base_url=ours.recv(), endpoint=COMPLETIONS, model=MODEL, form=Form.IDS, symbols=(1000, 20000), extras=EXTRAS
    )
    run = replay(where, schedule(args.streams, args.tokens, args.gap_ms / 1e3), Settings(processes=1))
    ours.send("end")
    server.join(10)
    found = result(run, slo=None)
    streams = [record for record in run.records if record.output_tokens == args.tokens]
    begin_s, end_s = RISE_S, min(record.done_s or 0.0 for record in streams)  # all streams run
    events = sum(begin_s <= at_s < end_s for record in run.records for at_s in record.event_s)
    sent = [r for r in run.records if r.sent_s is not None and begin_s <= r.due_s < end_s]
    lag_s = np.array([(r.sent_s or 0.0) - r.due_s for r in sent])
    figures = {
        "events_per_s": events / (end_s - begin_s),
        "asked_events_per_s": args.streams / args.gap_ms * 1e3,
        "client_cpu_share": run.clients[0].cpu_share,
        "requests_sent_meanwhile": len(sent),
        "send_lag_p99_ms": float(np.percentile(lag_s, 99)) * 1e3,
        "send_lag_max_ms": float(lag_s.max()) * 1e3,
        "valid": found["valid"],
    }
    table = Table(title=f"one client process, {args.streams} streams, an event every {args.gap_ms:g} ms each")
    for heading in ("figure", "value"):
        table.add_column(heading)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
