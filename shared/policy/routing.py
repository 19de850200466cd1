"""Cluster level scheduling: the prompt worker and the token worker of a request, chosen together at arrival.

Splitwise IV-A: join the shortest queue, measured in pending *tokens* on the prompt side and in KV memory on the token
side; both weighted by what the worker can do, so that unequal machines are balanced too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared.kv.blocks import blocks_for
from shared.policy.view import View, WorkerView
from shared.wire.messages import Submitted
from shared.wire.terms import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Both may be the same worker: then nothing is transferred."""

    prompt: WorkerView
    token: WorkerView


def place(view: View, request: Submitted, now: float) -> Placement | str:
    """The placement, or why there is none.

    A mixed worker does both phases of what it is given. When a pool has nobody left, the other pool's workers do both
    phases too: every worker can. A request for one token ends with its prefill and needs no token worker.
    """
    able = [w for w in view.reachable(now) if w.worker_id not in request.avoid and _can_hold(w, request)]
    if not able:
        return f"no ready worker serves model {request.model} with room for {request.prompt_tokens} tokens"
    prompts = [w for w in able if w.report.role is not Role.TOKEN] or able
    tokens = [w for w in able if w.report.role is Role.TOKEN]
    prompt = _shortest_queue(prompts)
    if prompt.report.role is not Role.PROMPT or not tokens or request.tokens_left <= 1:
        return Placement(prompt=prompt, token=prompt)
    return Placement(prompt=prompt, token=_least_demand(tokens))


def _can_hold(worker: WorkerView, request: Submitted) -> bool:
    report = worker.report
    return (
        report.model == request.model
        and request.prompt_tokens < report.max_model_len
        and blocks_for(request.prompt_tokens + 1, report.block_size) <= report.kv_blocks_total
    )


def _shortest_queue(workers: Iterable[WorkerView]) -> WorkerView:
    """Least time until the prompts already there are computed; ties by KV demand (mixed workers decode too)."""
    return min(workers, key=lambda w: (w.prompt_tokens / w.report.prefill_tokens_per_s, w.kv_demand, w.worker_id))


def _least_demand(workers: Iterable[WorkerView]) -> WorkerView:
    return min(workers, key=lambda w: (w.kv_demand, w.worker_id))
