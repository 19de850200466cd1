"""What the benches of the simulator have in common: loads, clusters of DGX machines, and one timed run."""

import dataclasses
import math
from dataclasses import dataclass
from time import process_time

import numpy as np

from loadgen.sim.cluster import Cluster
from loadgen.sim.outcome import SimRun
from loadgen.sim.world import simulate
from loadgen.traces.trace import Request, Trace

MODEL = "bloom-176b"
Counts = tuple[tuple[str, int, str], ...]  # machine type, how many, home role


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    simulated: SimRun
    cpu_s: float

    @property
    def requests_per_cpu_s(self) -> float:
        return len(self.simulated.run.records) / self.cpu_s


def cluster(machines: Counts, policy: str, **fields: object) -> Cluster:
    listed = [{"type": kind, "count": count, "role": role} for kind, count, role in machines]
    return Cluster.parse({"model": MODEL, "machines": listed, "policy": policy, **fields})


def split(prompt: int, token: int, kind: str = "dgx-h100") -> Counts:
    return (kind, prompt, "prompt"), (kind, token, "token")


def timed(load: Trace, where: Cluster, *, chunk_tokens: int | None = None) -> Timed:
    began_s = process_time()
    simulated = simulate(load, where, chunk_tokens=chunk_tokens)
    return Timed(simulated=simulated, cpu_s=process_time() - began_s)


def independent(lengths: Trace, *, rate_rps: float, span_s: float, seed: int = 0) -> Trace:
    """As the generator that was published with Splitwise: Poisson arrivals, prompts and answers drawn independently
    with replacement. Of two rates with one seed the lower has the first requests of the higher, further apart."""
    gaps, prompts, answers = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    many = math.ceil(rate_rps * span_s + 6 * math.sqrt(rate_rps * span_s) + 10)
    at_s = np.cumsum(gaps.exponential(1.0, many)) / rate_rps
    drawn = zip(
        at_s[at_s < span_s].tolist(),
        prompts.choice([r.prompt_tokens for r in lengths.requests], many).tolist(),
        answers.choice([r.output_tokens for r in lengths.requests], many).tolist(),
        strict=False,
    )
    requests = (Request(at_s=at, prompt_tokens=prompt, output_tokens=answer) for at, prompt, answer in drawn)
    return Trace(name=f"{lengths.name}, Poisson arrivals at {rate_rps:g} requests/s", requests=tuple(requests))


def repeated(trace: Trace, times: int) -> Trace:
    """One copy after the other."""
    copies = (
        dataclasses.replace(request, at_s=request.at_s + number * trace.span_s)
        for number in range(times)
        for request in trace.requests
    )
    return dataclasses.replace(trace, requests=tuple(copies))
