"""Seeded twins of the two Azure traces of 2023, made from the tables in `figures/`.

For every seed each marginal (prompt, answer, gap between arrivals) keeps to the trace's within a Kolmogorov-Smirnov
distance of 0.02, and so do prompt and answer together. Draws are therefore stratified, answers are drawn given the
prompt's length, and the model of the arrivals (loadgen.traces.arrivals) decides only the order of the gaps.

Tables: Azure Public Dataset, CC-BY 4.0; Patel et al., Splitwise, ISCA 2024.
"""

from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadgen.traces.arrivals import TICKS_PER_S, code_gaps, conv_gaps
from loadgen.traces.draws import Floats, generator, in_order_of, quantile, strata, values_in_order
from loadgen.traces.trace import Request, Trace

Counts = NDArray[np.int64]
Figures = dict[str, Any]


def generate(name: str, *, seed: int, requests: int | None = None) -> Trace:
    """`azure-conv` or `azure-code`; as many requests as the trace has, or the first so many of an endless one."""
    figures = figures_of(name)
    whole = int(figures["requests"])
    count = whole if requests is None else requests
    rngs = [generator(seed, part) for part in range(-(-count // whole))]
    ticks = np.cumsum(np.concatenate([_GAPS[name](figures, rng) for rng in rngs]))[:count]
    ticks -= ticks[0]
    prompts, outputs = np.concatenate([_lengths(figures, rng) for rng in rngs], axis=1)[:, :count]
    rows = zip((ticks / TICKS_PER_S).tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return Trace(
        name=name,
        requests=tuple(Request(at_s=at_s, prompt_tokens=p, output_tokens=o) for at_s, p, o in rows),
        notes=(f"generated with seed {seed} from tables of: {figures['source']}",),
    )


def figures_of(name: str) -> Figures:
    path = resources.files("loadgen.traces") / "figures" / f"{name.replace('-', '_')}.json"
    figures: Figures = orjson.loads(path.read_bytes())
    return figures


def _lengths(figures: Figures, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """Prompts from one table. Which answer goes with which prompt comes from the tables of 20 classes of prompts, the
    answers themselves from their own, finer one, the longest as they are."""
    prompts = _tokens(figures["prompt_quantiles"], strata(rng, figures["requests"]))
    bins = np.searchsorted(figures["prompt_bin_edges"][:-1], prompts)
    ranking = np.empty(len(prompts))
    for number, table in enumerate(figures["output_quantiles_by_bin"]):
        mine = np.flatnonzero(bins == number)
        ranking[mine] = quantile(table, strata(rng, len(mine)))
    outputs = values_in_order(figures["output_quantiles"], figures["output_tail"], len(prompts))
    return prompts, np.rint(in_order_of(ranking, outputs)).astype(np.int64)


def _tokens(table: list[int], probabilities: Floats) -> Counts:
    return np.maximum(1, np.rint(quantile(table, probabilities))).astype(np.int64)


_GAPS: dict[str, Callable[[Figures, np.random.Generator], Counts]] = {"azure-conv": conv_gaps, "azure-code": code_gaps}
NAMES = tuple(_GAPS)
