"""Calls on the deciders of live services in one process, in order, and the same calls on fresh deciders.

Those of a worker share its KV blocks, so they are recorded together. Their shell changes sequences between the calls:
each call comes with those that changed. Only calls from outside are recorded, not those of one decider on another.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

from services.gateway.events import Command, Event, Identity
from services.gateway.sessions import Sessions
from shared.ids import Attempt
from shared.policy.batching import Batch
from shared.policy.replay import Call as Decision
from shared.policy.replay import Record, recorded
from shared.policy.sequence import Sequence
from shared.runtime.journal import Note
from shared.wire.messages import StreamMessage
from shared.worker.worker import Worker

DECIDERS = {
    "fence": ("close", "refuses"),
    "batcher": ("enqueue", "admit", "remove", "next_batch"),
    "blocks": ("reach", "release"),
    "prompt_side": ("handle",),
    "token_side": ("handle",),
    "answers": ("ended",),
    "fitter": ("observe",),
}
Handle = Callable[[Sessions, Event, float], list[Command]]
Handled = tuple[Event, float, str]  # when, and the commands that it led to
FIELDS = [field.name for field in fields(Sequence)]


@dataclass(frozen=True, slots=True)
class Named:
    """A sequence as an argument."""

    key: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """answer: what it returned, and the queues and blocks after it."""

    decider: str
    method: str
    arguments: tuple[Any, ...]
    changed: tuple[Sequence, ...]
    draining: bool
    answer: str


def noting(records: list[Record]) -> Note:
    """A journal in memory."""

    def note(
        call: Decision, at: float, message: StreamMessage | None = None, *, subject: str = "", answer: object = None
    ) -> None:
        records.append(recorded(call, at, message, subject=subject, answer=answer))

    return note


class WorkerTape:
    """Of one worker, from before it runs."""

    def __init__(self, worker: Worker) -> None:
        self.calls: list[Call] = []
        self._worker = worker
        self._draws: list[int] = []
        self._within = False
        self._known: dict[Attempt, Sequence] = {}
        worker.token_side._fresh = self._noted(worker.token_side._fresh)
        for decider, methods in DECIDERS.items():
            target = getattr(worker, decider)
            for method in methods:
                setattr(target, method, self._recorded(decider, method, getattr(target, method)))

    def replay(self, calls: list[Call]) -> list[int]:
        """Numbers of the calls that a worker of the same options answers otherwise; it is never run."""
        live = self._worker
        fresh = Worker(
            options=live.options, engine_thread=live.engine_thread, broker=live.broker, links=live.links,
            transport=live.transport, clock=live.clock, spawn=live.transfers._spawn,
        )  # fmt: skip
        fresh.token_side._fresh = iter(self._draws)
        return [number for number, call in enumerate(calls) if _answer(fresh, call) != call.answer]

    def _recorded(self, decider: str, method: str, live: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._within:
                return live(*arguments)
            changed, draining = self._changed(), self._worker.token_side.draining
            self._within = True
            try:
                answer = live(*arguments)
            finally:
                self._within = False
            named = tuple(Named(a.key) if isinstance(a, Sequence) else a for a in arguments)
            self.calls.append(
                Call(
                    decider=decider, method=method, arguments=named, changed=changed, draining=draining,
                    answer=_said(self._worker, answer),
                )
            )  # fmt: skip
            return answer

        return call

    def _changed(self) -> tuple[Sequence, ...]:
        changed = []
        for key, sequence in self._worker.sequences.items():
            if key not in self._known or _state(self._known[key]) != _state(sequence):
                self._known[key] = _copied(sequence)
                changed.append(self._known[key])
        return tuple(changed)

    def _noted(self, fresh: Iterator[int]) -> Iterator[int]:
        for number in fresh:
            self._draws.append(number)
            yield number


def _answer(fresh: Worker, call: Call) -> str:
    for sequence in call.changed:
        mine = fresh.sequences.setdefault(sequence.key, _copied(sequence))
        for name in FIELDS:
            setattr(mine, name, getattr(_copied(sequence), name))
    fresh.token_side.draining = call.draining
    fresh.batcher.costs = fresh.fitter.fit.costs
    arguments = [fresh.sequences[a.key] if isinstance(a, Named) else a for a in call.arguments]
    return _said(fresh, getattr(getattr(fresh, call.decider), call.method)(*arguments))


def _copied(sequence: Sequence) -> Sequence:
    another = copy(sequence)
    another.tokens = list(sequence.tokens)
    return another


def _state(sequence: Sequence) -> tuple[Any, ...]:
    return tuple(getattr(sequence, name) for name in FIELDS)


def _said(worker: Worker, answer: Any) -> str:
    if isinstance(answer, Batch):
        pieces = [(piece.sequence.key, piece.sequence.computed, piece.end) for piece in answer.pieces]
        answer = pieces, [sequence.key for sequence in answer.decodes]
    waiting = [(sequence.key, sequence.computed) for sequence in worker.batcher.waiting]
    running = [(sequence.key, sequence.computed) for sequence in worker.batcher.running]
    return repr((answer, waiting, running, worker.blocks._owned, worker.fitter.fit))


class SessionsTape:
    """Of the sessions of one gateway: put `recording(Sessions.handle)` in the place of that method."""

    def __init__(self) -> None:
        self.events: list[Handled] = []

    def recording(self, live: Handle) -> Handle:
        def handle(sessions: Sessions, event: Event, now: float) -> list[Command]:
            commands = live(sessions, event, now)
            self.events.append((event, now, repr(commands)))
            return commands

        return handle

    def replay(self, identity: Identity, events: list[Handled]) -> list[int]:
        """Numbers of the events that lead to other commands in fresh sessions."""
        fresh = Sessions(identity)
        return [n for n, (event, now, said) in enumerate(events) if repr(fresh.handle(event, now)) != said]
