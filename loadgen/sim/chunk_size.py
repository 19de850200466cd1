"""The chunk size of the baseline with chunked prefill: a small one delays prompts, a large one the decodes beside it.

The best is the one with the smallest sum of the slow-downs at P90 of TTFT and TBT on the beginning of the trace: both
are shares of what a lone request sees, so neither unit outweighs the other, and P90 is where the two begin to hurt each
other. A request that does not complete is infinitely slow.
"""

import math

from rich.console import Console

from loadgen.measure.splitwise import nine
from loadgen.sim.cluster import Cluster
from loadgen.sim.shown import ProgressBar
from loadgen.sim.world import simulate
from loadgen.traces.scale import limit
from loadgen.traces.trace import Trace

CHUNK_TOKENS = (256, 512, 1024, 2048)
REQUESTS = 2000


def best_chunk(trace: Trace, cluster: Cluster, *, console: Console) -> tuple[int, str]:
    """And a note that says how it did. Of equal ones the larger: fewer steps."""
    start = limit(trace, REQUESTS)
    found: dict[int, float] = {}
    for chunk_tokens in reversed(CHUNK_TOKENS):
        with ProgressBar(console, f"trying chunks of {chunk_tokens}") as show:
            simulated = simulate(start, cluster, on_progress=show, chunk_tokens=chunk_tokens)
        table = nine(simulated.run, cluster.idle)
        found[chunk_tokens] = _p90(table["ttft"]) + _p90(table["tbt"])
    best = min(found, key=lambda chunk_tokens: found[chunk_tokens])
    tried = ", ".join(f"{chunk_tokens}: {found[chunk_tokens]:.2f}" for chunk_tokens in CHUNK_TOKENS)
    return best, (
        f"chunks of {best} tokens: the smallest sum of P90 slow-downs of TTFT and TBT over the first "
        f"{len(start.requests):,} requests ({tried})"
    )


def _p90(cells: object) -> float:
    """None, which stands for infinite and for no such time at all, is infinite where something was missed."""
    assert isinstance(cells, dict)
    value, met = cells["p90"]["value"], cells["p90"]["met"]
    return (0.0 if met else math.inf) if value is None else float(value)
