"""Whether the mesh can keep its promises to one more request, judged by the very code that will place it.

A request is refused when its predicted time to the first token exceeds its deadline or the target, when its predicted
time between tokens exceeds the target by more than TBT_TOLERANCE (workers aim their mixed steps at the target itself,
and no fit is exact), or when more prompt tokens would wait than are allowed to. A worker that was measured for fewer
than GUESSED_STEPS steps of a kind is a guess, and nobody is refused on a guess. Priority decides who is served first,
not who is let in. The queue bound alone lets any prompt into an empty queue: else a long one could never come in.

`retry_after_s` is the first whole second at which the same request would be let in if nobody else came: the same
question is asked of the view as it will be then. Prompts drain as fast as placement believes they do; decodes end
evenly over the time that an answer takes, as those of a steady load do. None: no wait helps, even an idle mesh would
be too slow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from shared.ids import EntryId, RequestId
from shared.policy.routing import Limits, Placement, place
from shared.policy.view import View
from shared.policy.worker_view import WorkerView
from shared.wire.messages import Placed, Submitted
from shared.wire.reports import WorkerReport

TBT_TOLERANCE = 0.05
GUESSED_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """None: not promised. max_queued_tokens: prompt tokens that may wait in the whole mesh, per model."""

    ttft_target_s: float | None = None
    tbt_target_s: float | None = None
    max_queued_tokens: int | None = None


class Promise(StrEnum):
    """What would be broken; the error code that a client sees."""

    QUEUE = "queue_full"
    DEADLINE = "deadline_unattainable"
    TTFT = "ttft_unattainable"
    TBT = "tbt_unattainable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """`excess_s`: how much too late the first token would come; 0 where that is not what is wrong."""

    promise: Promise
    reason: str
    excess_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """`placement` is where it would go now; None if nobody can take it now: not for admission to refuse."""

    placement: Placement | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    promise: Promise
    reason: str
    retry_after_s: int | None


def admit(view: View, request: Submitted, promises: Promises, now: float, limits: Limits) -> Admitted | Refused:
    verdict = judge(view, request, promises, now, limits)
    if not isinstance(verdict, Unmet):
        return Admitted(placement=verdict)

    def admits(seconds: int) -> bool:
        later = ahead(view, request.model, seconds, now)
        return not isinstance(judge(later, request, promises, now, limits), Unmet)

    busy_s = [max(worker.wait_s, _decodes_end_s(worker)) for worker in _workers(view, request.model, now)]
    retry_after_s = first_second(admits, math.ceil(verdict.excess_s), math.ceil(max(busy_s, default=0.0)))
    return Refused(promise=verdict.promise, reason=verdict.reason, retry_after_s=retry_after_s)


def judge(view: View, request: Submitted, promises: Promises, now: float, limits: Limits) -> Placement | Unmet | None:
    """The placement to expect, if it keeps the promises; None if there is none to expect."""
    placement = place(view, request, now, limits)
    if isinstance(placement, str):
        return None
    return (
        _queue(view, request, promises, now)
        or _first_token(placement, request, promises)
        or _between_tokens(placement, request, promises)
        or placement
    )


def ahead(view: View, model: str, seconds: float, now: float) -> View:
    """The view of a model's workers as it will be so many seconds later if nobody else comes."""
    later = View()
    for worker in _workers(view, model, now):
        later.apply(_drained(worker, seconds), EntryId("0-0"), now)
    return later


def first_second(admits: Callable[[int], bool], guess: int, horizon: int) -> int | None:
    """A whole second, at least 1, at which it admits although it does not a second before; None if it does not even
    at the horizon, where everything has drained. A good guess makes it two questions."""
    horizon = max(1, horizon)
    low, high = 0, min(max(1, guess), horizon)
    while not admits(high):
        if high == horizon:
            return None
        low, high = high, min(2 * high, horizon)
    middle = high - 1
    while high - low > 1:
        low, high = (low, middle) if admits(middle) else (middle, high)
        middle = (low + high) // 2
    return high


def _queue(view: View, request: Submitted, promises: Promises, now: float) -> Unmet | None:
    limit = promises.max_queued_tokens
    if limit is None:
        return None
    waiting = sum(worker.prompt_tokens for worker in _workers(view, request.model, now))
    if not waiting or waiting + request.prompt_tokens <= limit:
        return None
    return Unmet(
        promise=Promise.QUEUE,
        reason=f"{waiting} prompt tokens are waiting; with these {request.prompt_tokens} that exceeds {limit}",
    )


def _first_token(placement: Placement, request: Submitted, promises: Promises) -> Unmet | None:
    target_s = math.inf if promises.ttft_target_s is None else promises.ttft_target_s
    limit_s = min(target_s, request.time_left_s)
    excess_s = placement.ttft_s - limit_s
    if excess_s <= 0 or placement.prompt.report.fit.prefill_steps < GUESSED_STEPS:
        return None
    what = "target" if limit_s == target_s else "deadline"
    return Unmet(
        promise=Promise.TTFT if limit_s == target_s else Promise.DEADLINE,
        reason=f"the first token would come after {placement.ttft_s:.3g} s; the {what} is {limit_s:.3g} s",
        excess_s=excess_s,
    )


def _between_tokens(placement: Placement, request: Submitted, promises: Promises) -> Unmet | None:
    target_s = promises.tbt_target_s
    if target_s is None or request.tokens_left <= 1 or placement.token.report.fit.decode_steps < GUESSED_STEPS:
        return None
    if placement.tbt_s <= target_s * (1 + TBT_TOLERANCE):
        return None
    return Unmet(
        promise=Promise.TBT,
        reason=f"the time between tokens would be {placement.tbt_s:.3g} s; the target is {target_s:.3g} s",
    )


def _workers(view: View, model: str, now: float) -> list[WorkerView]:
    return [worker for worker in view.reachable(now) if worker.report.model == model]


def _drained(worker: WorkerView, seconds: float) -> WorkerReport:
    prompts = _left(worker.wait_s, seconds)
    decodes = _left(_decodes_end_s(worker), seconds)
    return replace(
        worker.report,
        queue_tokens=math.ceil(worker.prompt_tokens * prompts),
        queue_s=worker.queue_s * prompts,
        decodes=math.ceil(worker.decodes * decodes),
        demand_blocks=math.ceil(worker.demand_blocks * decodes),
        kv_blocks_used=math.ceil(worker.report.kv_blocks_used * decodes),
    )


def _left(whole_s: float, seconds: float) -> float:
    return max(0.0, 1.0 - seconds / whole_s) if whole_s > 0 else 0.0


def _decodes_end_s(worker: WorkerView) -> float:
    return worker.report.expected_output_tokens * worker.tbt_s if worker.decodes else 0.0


class Admission:
    """The door of one gateway. A view learns of a request when its placement is read back; until then whoever was let
    in is counted where it is expected to go, so that no two requests are let in on the same free second."""

    def __init__(self, view: View, promises: Promises, limits: Limits) -> None:
        self._view = view
        self._promises = promises
        self._limits = limits
        self._expected: dict[RequestId, Placed] = {}

    def ask(self, request: Submitted, now: float) -> Admitted | Refused:
        verdict = admit(self._view, request, self._promises, now, self._limits)
        if isinstance(verdict, Admitted) and verdict.placement is not None:
            placed = self._expected[request.request_id] = verdict.placement.placed(request)
            self._view.foresee(placed)
        return verdict

    def settle(self, request_id: RequestId) -> None:
        """Its placement has been applied to the view, or there will be none, or it has ended."""
        if (placed := self._expected.pop(request_id, None)) is not None:
            self._view.retract(placed)  # nothing, where the view has put the real placement in its place

    def check(self) -> None:
        self._view.check()
        for request_id, placed in self._expected.items():
            assert placed.request_id == request_id, "expected under another name"
