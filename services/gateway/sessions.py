"""The owner of every accepted request: submits it, orders its tokens, resubmits it when a worker is lost, ends it once.

Pure: events in, commands out; no I/O, no clock. What holds: a client is given every position once and in order, and
exactly one end (a Deliver with a finish, or an End). Frames of an attempt that is not the newest get a Cancel. Work in
flight is judged by links alone: a worker whose reports fall silent while its link lives goes on undisturbed.
"""

from dataclasses import asdict
from typing import assert_never

from services.gateway import events as ev
from services.gateway.alarms import Alarms
from services.gateway.events import Command, Deliver, End, Outcome, Submit, Watch
from services.gateway.peers import Peers
from services.gateway.session import Session, cancel
from services.gateway.timeline import Timelines
from shared.ids import Address, RequestId
from shared.link.port import Lost, Received
from shared.wire import messages as wire
from shared.wire.messages import Chunk, Failed, HandedOff, LinkMessage, Placed, Unplaceable
from shared.wire.terms import Finish

MAX_FAILURES = 3  # attempts that may end by a lost worker, a retryable failure or a lost submission
PLACEMENT_PATIENCE_S = 10.0
UNPLACEABLE_LIMIT_S = 30.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 2.0


class Sessions:
    """Mutate only through `handle`. `wake_at` says when to send the next Woke."""

    def __init__(self, identity: ev.Identity) -> None:
        self._identity = identity
        self._open: dict[RequestId, Session] = {}
        self._alarms = Alarms()
        self._peers = Peers()
        self._answering_since: float | None = float("-inf")
        self.timelines = Timelines()

    @property
    def wake_at(self) -> float | None:
        return self._alarms.next_at

    def __len__(self) -> int:
        return len(self._open)

    def handle(self, event: ev.Event, now: float) -> list[Command]:
        match event:
            case Received(peer=peer, message=frame):
                return self._on_frame(peer, frame, now)
            case Placed():
                return self._on_placed(event, now)
            case Unplaceable():
                return self._on_unplaceable(event, now)
            case Lost(peer=peer, reason=reason):
                return self._on_lost(peer, reason, now)
            case _:
                return self._on_own_event(event, now)

    def _on_own_event(self, event: ev.OwnEvent, now: float) -> list[Command]:
        match event:
            case ev.Opened():
                return self._on_opened(event, now)
            case ev.ClientLeft(request_id=request_id):
                return self._withdraw(request_id, Outcome.CANCELLED, now)
            case ev.StopStringMet(request_id=request_id):
                return self._withdraw(request_id, Outcome.COMPLETED, now)
            case ev.SubmitFailed():
                return self._on_submit_failed(event, now)
            case ev.WorkerHeard():
                self._peers.heard(event)
                return []
            case ev.Woke():
                return self._on_woke(now)
            case ev.BrokerSilent():
                self._answering_since = None
                return []
            case ev.BrokerBack():
                return self._on_broker_back(now)
            case ev.Stopping():
                ends = [self._fail(s, 503, "shutting_down", "this gateway stops", now) for s in [*self._open.values()]]
                return [command for commands in ends for command in commands]
            case _:
                assert_never(event)

    # ---- a request's way --------------------------------------------------------------------------------------------

    def _on_opened(self, opened: ev.Opened, now: float) -> list[Command]:
        session = Session.of(opened, self.timelines.open(opened.request_id, now), now)
        self._open[session.request_id] = session
        session.timeline.note("received", now, prompt_tokens=len(opened.prompt))
        self._alarms.wake(session.request_id, session.deadline)
        return self._submit(session, now)

    def _submit(self, session: Session, now: float) -> list[Command]:
        session.next_attempt(now)
        session.timeline.note("submitted", now, attempt=session.attempt.number, emitted=len(session.received))
        self._alarms.wake(session.request_id, now + PLACEMENT_PATIENCE_S)
        avoid = self._peers.recently_lost(now)
        return [Submit(message=session.submitted(self._identity.gateway_id, self._identity.address, avoid, now))]

    def _on_placed(self, placed: Placed, now: float) -> list[Command]:
        if placed.gateway_id != self._identity.gateway_id:
            return []
        session = self._current(placed.request_id, placed.attempt)
        addresses = {placed.prompt_address, placed.token_address}
        if session is None:
            return [c for peer in sorted(addresses) for c in self._disown(peer, placed.request_id, placed.attempt)]
        if session.attempt.placed is not None:  # the same attempt, twice in the queue: the first placement counts
            surplus = addresses - session.attempt.peers
            return [cancel(peer, placed.request_id, placed.attempt) for peer in sorted(surplus)]
        workers = {"prompt_worker": placed.prompt_worker, "token_worker": placed.token_worker}
        session.timeline.note("placed", now, attempt=placed.attempt, **workers)
        if dead := self._peers.dead_in(placed):
            living = [cancel(peer, placed.request_id, placed.attempt) for peer in sorted(addresses - dead.keys())]
            return [*living, *self._place_later(session, f"{', '.join(dead.values())} is lost", now)]
        session.attempt.place(placed)
        session.unplaceable_since, session.unplaceable_times = None, 0
        return [Watch(peer=peer) for peer in self._peers.start_watching(placed)]

    def _on_frame(self, peer: Address, message: LinkMessage, now: float) -> list[Command]:
        match message:
            case wire.Tokens(chunks=chunks):
                return [command for chunk in chunks for command in self._on_chunk(peer, chunk, now)]
            case HandedOff():
                return self._on_handed_off(peer, message, now)
            case Failed():
                return self._on_failed(peer, message, now)
            case _:
                return []  # the other frames are between workers

    def _on_chunk(self, peer: Address, chunk: Chunk, now: float) -> list[Command]:
        session = self._current(chunk.request_id, chunk.attempt)
        if session is None:
            return self._disown(peer, chunk.request_id, chunk.attempt)
        session.attempt.hear(peer, chunk.position + len(chunk.token_ids) - 1)
        if chunk.stage:
            session.timeline.note("measured", now, **asdict(chunk.stage))
        first = not session.received
        token_ids, finish = session.take(chunk)
        if token_ids and first:
            session.timeline.note("first_token", now)
        if finish:
            return [self._complete(session, token_ids, finish, now)]
        return [Deliver(request_id=session.request_id, token_ids=token_ids, finish=None)] if token_ids else []

    def _on_handed_off(self, peer: Address, handed_off: HandedOff, now: float) -> list[Command]:
        session = self._current(handed_off.request_id, handed_off.attempt)
        if session is None:
            return self._disown(peer, handed_off.request_id, handed_off.attempt)
        session.attempt.hand_off()
        measured = {name: value for name, value in asdict(handed_off).items() if name != "request_id"}
        session.timeline.note("handed_off", now, **measured)
        return []

    def _complete(self, session: Session, token_ids: tuple[int, ...], finish: Finish, now: float) -> Command:
        self._close(session, Outcome.COMPLETED, now, finish=finish.value)
        session.timeline.finished_attempt = session.attempt.number
        return Deliver(request_id=session.request_id, token_ids=token_ids, finish=finish)

    def _withdraw(self, request_id: RequestId, outcome: Outcome, now: float) -> list[Command]:
        """The client wants no more. A placement that is still to come will be answered by Cancel."""
        session = self._open.get(request_id)
        if session is None:
            return []
        self._close(session, outcome, now)
        return session.cancels()

    # ---- trouble ----------------------------------------------------------------------------------------------------

    def _on_lost(self, peer: Address, reason: str, now: float) -> list[Command]:
        self._peers.link_lost(peer, now)
        return [c for session in list(self._open.values()) for c in self._without(session, peer, reason, now)]

    def _without(self, session: Session, peer: Address, reason: str, now: float) -> list[Command]:
        attempt = session.attempt
        if attempt.over or peer not in attempt.peers:
            return []
        needed = peer in attempt.holders
        attempt.peers.discard(peer)
        return self._retry(session, f"worker at {peer} lost: {reason}", now) if needed else []

    def _on_failed(self, peer: Address, failed: Failed, now: float) -> list[Command]:
        session = self._current(failed.request_id, failed.attempt)
        if session is None:
            return []  # it ended there already: nothing to cancel
        attempt = session.attempt
        if attempt.peers and peer not in attempt.holders:
            return []
        attempt.peers.discard(peer)
        if failed.retryable:
            return self._retry(session, f"{failed.code}: {failed.message}", now, after_s=FIRST_BACKOFF_S)
        return self._fail(session, 500, failed.code, failed.message, now)

    def _on_submit_failed(self, failed: ev.SubmitFailed, now: float) -> list[Command]:
        session = self._current(failed.request_id, failed.attempt)
        if session is None or not session.attempt.unheard:
            return []  # it did get through
        if session.attempt.number == 1:
            return self._fail(session, 503, "broker_unavailable", "the mesh cannot take requests now", now, 1.0)
        return self._resubmit_later(session, now + FIRST_BACKOFF_S)

    def _on_unplaceable(self, message: Unplaceable, now: float) -> list[Command]:
        session = self._current(message.request_id, message.attempt)
        if session is None or not session.attempt.unheard:
            return []
        return self._place_later(session, message.reason, now)

    def _place_later(self, session: Session, reason: str, now: float) -> list[Command]:
        """Nobody has worked on it: try again for a while, that counts as no failure."""
        session.timeline.note("unplaceable", now, attempt=session.attempt.number, reason=reason)
        if session.unplaceable_since is None:
            session.unplaceable_since = now
        if now - session.unplaceable_since >= UNPLACEABLE_LIMIT_S:
            return self._fail(session, 503, "no_worker", f"no worker can take this request: {reason}", now, 5.0)
        backoff_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**session.unplaceable_times)
        session.unplaceable_times += 1
        return self._resubmit_later(session, now + backoff_s)

    def _retry(self, session: Session, reason: str, now: float, *, after_s: float = 0.0) -> list[Command]:
        """This attempt is over; go on from the tokens that were received."""
        commands = session.cancels()
        session.attempt.over = True
        session.failures += 1
        session.timeline.note("retried", now, attempt=session.attempt.number, reason=reason)
        if len(session.received) >= session.sampling.max_tokens:  # only the word that it ended was lost
            return [*commands, self._complete(session, (), Finish.LENGTH, now)]
        if session.failures >= MAX_FAILURES:
            message = f"the request failed on {session.failures} workers; last: {reason}"
            return [*commands, *self._fail(session, 503, "workers_failed", message, now, 1.0)]
        if after_s:
            return [*commands, *self._resubmit_later(session, now + after_s)]
        return [*commands, *self._submit(session, now)]

    def _resubmit_later(self, session: Session, at: float) -> list[Command]:
        session.attempt.over = True
        session.resubmit_at = at
        self._alarms.wake(session.request_id, at)
        return []

    def _fail(
        self, session: Session, status: int, code: str, message: str, now: float, retry_after_s: float | None = None
    ) -> list[Command]:
        outcome = Outcome.TIMEOUT if code == "timeout" else Outcome.FAILED
        commands = [] if session.attempt.over else session.cancels()
        self._close(session, outcome, now, code=code)
        end = End(
            request_id=session.request_id, outcome=outcome, status=status, code=code, message=message,
            retry_after_s=retry_after_s,
        )  # fmt: skip
        return [*commands, end]

    def _on_woke(self, now: float) -> list[Command]:
        rung = self._alarms.ring(now)
        return [c for request_id in rung if (s := self._open.get(request_id)) for c in self._look_after(s, now)]

    def _look_after(self, session: Session, now: float) -> list[Command]:
        if now >= session.deadline:
            allowed_s = session.deadline - session.arrived_at
            return self._fail(session, 504, "timeout", f"not finished within {allowed_s:g} s", now)
        if session.resubmit_at is not None and now >= session.resubmit_at:
            return self._submit(session, now)
        if session.attempt.unheard and self._answering_since is not None:
            patient_until = max(session.attempt.submitted_at, self._answering_since) + PLACEMENT_PATIENCE_S
            if now >= patient_until:
                return self._retry(session, "no router placed it", now)
            self._alarms.wake(session.request_id, patient_until)
        return []

    def _on_broker_back(self, now: float) -> list[Command]:
        if self._answering_since is None:
            self._answering_since = now
            for request_id in self._open:
                self._alarms.wake(request_id, now + PLACEMENT_PATIENCE_S)
        return []

    def _current(self, request_id: RequestId, attempt: int) -> Session | None:
        session = self._open.get(request_id)
        return session if session and session.attempt.number == attempt and not session.attempt.over else None

    def _disown(self, peer: Address, request_id: RequestId, attempt: int) -> list[Command]:
        """Stop a worker that works for nobody. The last frames of an attempt that ended well need no answer."""
        timeline = self.timelines.get(request_id)
        return [] if timeline and timeline.finished_attempt == attempt else [cancel(peer, request_id, attempt)]

    def _close(self, session: Session, outcome: Outcome, now: float, **details: str) -> None:
        session.timeline.note("ended", now, outcome=outcome.value, output_tokens=len(session.received), **details)
        session.timeline.outcome = outcome.value
        del self._open[session.request_id]

    def check(self) -> None:
        """Invariants: every open request will be woken at its deadline; each session is in order."""
        assert self._open.keys() <= self._alarms.waiting_for()
        for session in self._open.values():
            session.check()
            assert session.failures < MAX_FAILURES
