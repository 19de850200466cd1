"""What a trace looks like, in figures: arrivals, lengths, what prompts share, users.

Arrivals are those of requests with a fixed time: a user's next request comes when the server lets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadgen.traces.draws import Floats
from loadgen.traces.trace import Trace
from loadgen.traces.windows import burstiness

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Rates are per second. `shared`: the share of all prompt tokens in blocks that came before, as an endless cache
    would find them; `carried`: in prompts and answers of the same user's turn before."""

    name: str
    sha256: str
    requests: int
    timed: int  # requests with a fixed time
    span_s: float
    mean_rps: float | None
    arrivals: dict[str, float]  # as loadgen.traces.windows.burstiness names them
    prompt_tokens: dict[str, float]
    output_tokens: dict[str, float]
    total_prompt_tokens: int
    total_output_tokens: int
    longest_tokens: int  # prompt and answer together
    shared: float
    carried: float
    users: int
    longest_chain: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def describe(trace: Trace) -> Figures:
    requests = trace.requests
    at_s = arrivals_of(trace)
    prompts = np.array([r.prompt_tokens for r in requests], dtype=np.int64)
    outputs = np.array([r.output_tokens for r in requests], dtype=np.int64)
    total = int(prompts.sum())
    chains = _turn_numbers(trace)
    return Figures(
        name=trace.name,
        sha256=trace.sha256,
        requests=len(requests),
        timed=len(at_s),
        span_s=trace.span_s,
        mean_rps=len(at_s) / float(at_s[-1]) if len(at_s) and at_s[-1] > 0 else None,
        arrivals=burstiness(at_s),
        prompt_tokens=_lengths(prompts),
        output_tokens=_lengths(outputs),
        total_prompt_tokens=total,
        total_output_tokens=int(outputs.sum()),
        longest_tokens=int((prompts + outputs).max()),
        shared=shared_tokens(trace) / total,
        carried=_carried_tokens(trace) / total,
        users=len(at_s) if not trace.open_loop else 0,
        longest_chain=max(chains),
        notes=trace.notes,
    )


def arrivals_of(trace: Trace) -> Floats:
    return np.array([r.at_s for r in trace.requests if r.after is None], dtype=np.float64)


def shared_tokens(trace: Trace) -> int:
    """Prompt tokens in leading blocks that an earlier request had too."""
    seen: set[int] = set()
    tokens = 0
    for r in trace.requests:
        hits = next((i for i, block in enumerate(r.blocks) if block not in seen), len(r.blocks))
        tokens += min(hits * r.block_tokens, r.prompt_tokens)
        seen.update(r.blocks)
    return tokens


def _carried_tokens(trace: Trace) -> int:
    before = [trace.requests[r.after] for r in trace.requests if r.carries and r.after is not None]
    return sum(r.prompt_tokens + r.output_tokens for r in before)


def _turn_numbers(trace: Trace) -> Sequence[int]:
    """How many requests of the same user each request is preceded by, and itself."""
    turns: list[int] = []
    for r in trace.requests:
        turns.append(1 if r.after is None else turns[r.after] + 1)
    return turns


def _lengths(tokens: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    quantiles = {
        f"p{q * 100:g}": float(value) for q, value in zip(QUANTILES, np.quantile(tokens, QUANTILES), strict=True)
    }
    return {"mean": float(tokens.mean()), "min": float(tokens.min()), **quantiles, "max": float(tokens.max())}
