"""Cluster level scheduling: the prompt worker and the token worker of a request, chosen together at arrival.

Splitwise IV-A: join the shortest queue, in pending tokens on the prompt side and in KV demand on the token side, each
at the worker's own speed. When a pool's best is too busy: workers that are mixed already, then one borrowed from the
other pool, then both phases on one worker. A prompt whose transfer would cost more than it saves decodes where it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from shared.kv.blocks import blocks_for
from shared.policy.demand import expected_tokens
from shared.policy.view import View
from shared.policy.worker_view import WorkerView
from shared.wire.messages import Placed, Submitted
from shared.wire.terms import Role

# A pool counts as busy beyond so many pending prompt tokens (as in Splitwise's simulator), or so long a wait for them:
# where a machine takes that long it is better helped, however few tokens they are.
OVERFLOW_TOKENS, OVERFLOW_S = 8192, 1.5

Fits = Callable[[WorkerView], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a queue is too long. ttft_target_s: half of it is the longest wait that a pool may offer. borrow: False
    keeps each phase in its own pool as long as anybody is left there, whatever moving costs."""

    borrow: bool = True
    overflow_tokens: int = OVERFLOW_TOKENS
    overflow_s: float = OVERFLOW_S
    ttft_target_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Both may be the same worker: then nothing is transferred. The times are predictions; where KV memory is short,
    ttft_s counts the wait for it, which prompts soon feel."""

    prompt: WorkerView
    token: WorkerView
    ttft_s: float
    tbt_s: float

    def placed(self, request: Submitted) -> Placed:
        """What everyone is told of it."""
        return Placed(
            request_id=request.request_id,
            attempt=request.attempt,
            prompt_worker=self.prompt.worker_id,
            token_worker=self.token.worker_id,
            prompt_address=self.prompt.report.link_address,
            token_address=self.token.report.link_address,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.tokens_left,
            gateway_id=request.gateway_id,
            time_left_s=request.time_left_s,
        )


DEFAULT_LIMITS = Limits()


def place(view: View, request: Submitted, now: float, limits: Limits = DEFAULT_LIMITS) -> Placement | str:
    """The placement, or why there is none."""
    view.forget(now)
    fits = _fits(request)
    prompt = _prompt_worker(view, request, fits, limits)
    if prompt is None:
        return f"no ready worker serves model {request.model} with room for {request.prompt_tokens} tokens"
    token = _token_worker(view, request, fits, prompt, limits)
    if limits.borrow and token is not prompt and _stays(prompt, token, request):
        token = prompt
    ttft_s = prompt.ttft_s(request.prompt_tokens) + token.room_in_s(request.prompt_tokens, request.tokens_left)
    return Placement(prompt=prompt, token=token, ttft_s=ttft_s, tbt_s=token.tbt_s)


def _fits(request: Submitted) -> Fits:
    def fits(worker: WorkerView) -> bool:
        report = worker.report
        return (
            request.prompt_tokens < report.max_model_len
            and blocks_for(request.prompt_tokens + 1, report.block_size) <= report.kv_blocks_total
            and worker.worker_id not in request.avoid
        )

    return fits


def _prompt_worker(view: View, request: Submitted, fits: Fits, limits: Limits) -> WorkerView | None:
    """The worker with the shortest queue: of the first pool that is not busy, but of a later one only if the first
    token comes earlier there; when all are busy, of all."""
    best: WorkerView | None = None
    best_s = math.inf
    for pool in (Role.PROMPT, Role.MIXED, Role.TOKEN):
        worker = view.shortest(request.model, pool, fits)
        if worker is None or (ttft_s := worker.ttft_s(request.prompt_tokens)) >= best_s:
            continue
        if not limits.borrow or worker.wait_s <= _longest_wait_s(worker, request, limits):
            return worker
        best, best_s = worker, ttft_s
    return best


def _longest_wait_s(worker: WorkerView, request: Submitted, limits: Limits) -> float:
    target_s = request.time_left_s if limits.ttft_target_s is None else limits.ttft_target_s
    return min(worker.seconds_for(limits.overflow_tokens), limits.overflow_s, target_s / 2)


def _token_worker(view: View, request: Submitted, fits: Fits, prompt: WorkerView, limits: Limits) -> WorkerView:
    """A mixed home keeps what it prefilled. Where the token pool has no room, or would be too slow, a worker that is
    mixed already or the prompt worker itself (opposite pool, both phases on one worker) is taken if it is better."""
    tokens, output = request.prompt_tokens, request.tokens_left
    if output <= 1 or prompt.report.role is Role.MIXED:
        return prompt

    def has_room(worker: WorkerView) -> bool:
        return fits(worker) and worker.has_room(tokens, output)

    own = view.least_demand(request.model, Role.TOKEN, lambda worker: worker is not prompt and has_room(worker))
    if own is not None and (not limits.borrow or own.tbt_s <= own.report.step_target_s):
        return own
    if own is None and not limits.borrow and (full := view.least_demand(request.model, Role.TOKEN, fits)) is not None:
        return full
    found = [own, view.least_demand(request.model, Role.MIXED, has_room), prompt if has_room(prompt) else None]
    able = [worker for worker in found if worker is not None]
    if able:
        return min(able, key=lambda worker: worker.tbt_s)  # the first of equals: own pool, mixed, opposite
    return _least_full(view, request, fits) or prompt


def _least_full(view: View, request: Submitted, fits: Fits) -> WorkerView | None:
    """Memory is short everywhere: who decodes anyway waits where it is shortest least."""
    found = [view.least_demand(request.model, pool, fits) for pool in (Role.TOKEN, Role.MIXED)]
    return min((w for w in found if w is not None), key=lambda w: w.kv_demand, default=None)


def _stays(prompt: WorkerView, token: WorkerView, request: Submitted) -> bool:
    """Conditional disaggregation: moving exposes more than the decode steps here would take from other prompts."""
    report, knows = prompt.report, token.report  # answers end, and are learned, at token workers
    expected = expected_tokens(request.tokens_left, knows.expected_output_tokens, knows.bounds_used) - 1
    step_s = report.fit.costs.decode_s(prompt.demand_blocks * report.block_size + request.prompt_tokens, 1)
    return exposed_s(prompt, request.prompt_tokens) > expected * step_s


def exposed_s(prompt: WorkerView, tokens: int) -> float:
    """What of the transfer cannot hide behind the prefill: the last layer, or all that the link is too slow for."""
    report = prompt.report
    if report.transport_bandwidth_gb_s <= 0:
        return 0.0
    whole_s = tokens * report.kv_bytes_per_token / (report.transport_bandwidth_gb_s * 1e9)
    hidden_s = report.fit.costs.prefill_s(tokens) if tokens >= report.push_threshold else 0.0
    return report.transport_latency_ms / 1e3 + max(whole_s / max(1, report.layers), whole_s - hidden_s)
