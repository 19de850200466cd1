"""A load that a machine can be asked, from how fast it serves lone requests: traces of large machines, made to fit."""

import argparse

import numpy as np
from rich.console import Console

from loadgen.client.server import Server
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.traces import load
from loadgen.traces.scale import fit, limit, scale_rate
from loadgen.traces.trace import Trace
from loadgen.watched import idle_speed

LENGTH_SCALE, QUICK_LENGTH_SCALE = 0.25, 0.1  # of a trace that was recorded on machines with GPUs
LOAD = 0.4  # share of the time that the busier phase would need if every request came alone
BATCHING = 2.0  # how much more a decode worker surely gives when requests come together
TTFT_SLACK, TBT_SLACK = 5.0, 2.5
LEAST_REQUESTS = 8


def load_for(server: Server, given: argparse.Namespace, console: Console, *, span_s: float) -> tuple[Trace, Slo]:
    """The trace and the SLO that were asked for. What was left open is chosen: lengths are scaled down, the rate is one
    that the server bears, the trace ends after `span_s`, and the SLO is what its users would find tolerable."""
    rate_given = given.rate_scale
    given.rate_scale, given.length_scale = (
        given.rate_scale or 1.0,
        given.length_scale or (QUICK_LENGTH_SCALE if given.quick else LENGTH_SCALE),
    )
    trace = load.from_arguments(given)
    trace = fit(trace, server.max_model_len) if server.max_model_len else trace
    idle = idle_speed(server, trace, console, deadline_s=given.deadline)
    if rate_given is None:
        trace = bearable(trace, idle)
    if given.limit is None:
        trace = beginning(trace, span_s)
    return trace, Slo.parse(given.slo or tolerable(trace, idle))


def bearable(trace: Trace, idle: IdleSpeed) -> Trace:
    """The trace at the rate at which the busier phase has LOAD to do, as far as lone requests tell."""
    prompts = np.array([request.prompt_tokens for request in trace.requests])
    prefill_s = float(idle.ttft_alone_s(prompts).mean())
    decode_s = float(np.mean([request.output_tokens for request in trace.requests])) * idle.tbt_s / BATCHING
    rate_rps = len(trace.requests) / max(trace.span_s, 1e-9)
    return scale_rate(trace, round(LOAD / max(prefill_s, decode_s) / rate_rps, 4))


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
