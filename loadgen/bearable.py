"""A load that a machine can be asked, from how fast it serves lone requests: traces of large machines, made to fit."""

import argparse

import numpy as np
from rich.console import Console

from loadgen.client.server import Server
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.traces import load
from loadgen.traces.scale import limit, scale_rate
from loadgen.traces.trace import Trace
from loadgen.watched import idle_speed, suited

DEFAULT_TRACE = "azure-conv"
LENGTH_SCALE, QUICK_LENGTH_SCALE = 0.25, 0.1  # of a trace that was recorded on machines with GPUs
LOAD = 0.6  # share of the time that the busier phase would need if every request came alone
BATCHING = 2.0  # how much more a decode worker surely gives when requests come together
TTFT_SLACK, TBT_SLACK = 5.0, 2.5
LEAST_REQUESTS = 8
RUN_S, QUICK_S = 60.0, 20.0


def load_for(server: Server, given: argparse.Namespace, console: Console) -> tuple[Trace, Slo, IdleSpeed]:
    """The trace and the SLO that were asked for, and the speed of the idle server. What was left open is chosen:
    lengths are scaled down, the rate is one that the server bears for a minute or so, the SLO is what its users would
    find tolerable."""
    smaller, span_s = (QUICK_LENGTH_SCALE, QUICK_S) if given.quick else (LENGTH_SCALE, RUN_S)
    trace = load.from_arguments(given, name=given.trace or DEFAULT_TRACE, length_scale=given.length_scale or smaller)
    trace = suited(trace, [server])
    idle = idle_speed(server, trace, console, deadline_s=given.deadline)
    if given.rate_scale is None and trace.open_loop:
        trace = bearable(trace, idle, None if given.limit else span_s)
    elif given.limit is None:
        trace = beginning(trace, span_s)
    return trace, Slo.parse(given.slo or tolerable(trace, idle)), idle


def bearable(trace: Trace, idle: IdleSpeed, span_s: float | None) -> Trace:
    """At the rate at which the busier phase has LOAD to do, as far as lone requests tell, and only as much as arrives
    in `span_s`: traces begin slower or faster than they are on average."""
    prompts = np.array([request.prompt_tokens for request in trace.requests])
    prefill_s = float(idle.ttft_alone_s(prompts).mean())
    decode_s = float(np.mean([request.output_tokens for request in trace.requests])) * idle.tbt_s / BATCHING
    rate_rps = LOAD / max(prefill_s, decode_s)
    if span_s is not None:
        trace = limit(trace, max(LEAST_REQUESTS, round(rate_rps * span_s)))
    return scale_rate(trace, float(f"{rate_rps * trace.span_s / len(trace.requests):.3g}"))


def tolerable(trace: Trace, idle: IdleSpeed) -> str:
    """An SLO as users of the idle system would find tolerable: several times its TTFT of a long prompt (P90), and its
    time between tokens."""
    long_prompt = np.quantile([request.prompt_tokens for request in trace.requests], [0.9])
    ttft_s = TTFT_SLACK * float(idle.ttft_alone_s(long_prompt.astype(np.int64))[0])
    return f"ttft={ttft_s:.2g},tbt={TBT_SLACK * idle.tbt_s:.2g}"


def beginning(trace: Trace, span_s: float) -> Trace:
    """As much of a trace as arrives in that time, or a few requests at least."""
    inside = sum(request.at_s <= span_s for request in trace.requests)
    return limit(trace, min(len(trace.requests), max(LEAST_REQUESTS, inside)))
