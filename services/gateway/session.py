"""One request as its gateway knows it: the tokens received so far, and who is working on the newest attempt."""

from dataclasses import dataclass, field

from services.gateway.events import Command, Opened, Send
from services.gateway.timeline import Timeline
from shared.ids import Address, RequestId, ServiceId, WorkerId
from shared.wire.messages import Cancel, Chunk, Placed, Submitted
from shared.wire.terms import Finish, Sampling


@dataclass(slots=True)
class Attempt:
    """`border`: tokens received before it. `over`: whatever still comes of it is stale."""

    number: int
    border: int
    submitted_at: float
    placed: Placed | None = None
    peers: set[Address] = field(default_factory=set)  # who may have it: they get the Cancel
    decoder: Address | None = None  # the one that goes on alone
    over: bool = False

    @property
    def holders(self) -> set[Address]:
        """Whose death ends the attempt. A prompt worker matters until someone is known to decode without it."""
        return {self.decoder} if self.decoder else self.peers

    @property
    def unheard(self) -> bool:
        return not self.over and self.placed is None and not self.peers

    def place(self, placed: Placed) -> None:
        self.placed = placed
        self.peers |= {placed.prompt_address, placed.token_address}

    def hear(self, peer: Address, last_position: int) -> None:
        """A chunk from `peer` up to this position: beyond the first token it must be decoding."""
        self.peers.add(peer)
        if last_position > self.border or (self.placed and peer == self.placed.token_address):
            self.decoder = peer

    def hand_off(self) -> None:
        if self.placed:
            self.decoder = self.placed.token_address


@dataclass(slots=True)
class Session:
    """`received` grows by position only, without a gap; what comes early waits in `early`."""

    request_id: RequestId
    prompt: tuple[int, ...]
    sampling: Sampling
    model: str
    priority: int
    arrived_at: float
    deadline: float
    attempt: Attempt
    timeline: Timeline
    received: list[int] = field(default_factory=list)
    early: dict[int, int] = field(default_factory=dict)
    finish: tuple[int, Finish] | None = None  # how many tokens there are in the end, and why it ends there
    failures: int = 0
    resubmit_at: float | None = None
    unplaceable_since: float | None = None
    unplaceable_times: int = 0

    @classmethod
    def of(cls, opened: Opened, timeline: Timeline, now: float) -> "Session":
        return cls(
            request_id=opened.request_id,
            prompt=opened.prompt,
            sampling=opened.sampling,
            model=opened.model,
            priority=opened.priority,
            arrived_at=now,
            deadline=now + opened.time_left_s,
            attempt=Attempt(number=0, border=0, submitted_at=now),
            timeline=timeline,
        )

    def take(self, chunk: Chunk) -> tuple[tuple[int, ...], Finish | None]:
        """The tokens that are new and next in order, and the finish once all tokens before it were taken."""
        for position, token_id in enumerate(chunk.token_ids, chunk.position):
            if len(self.received) <= position < self.sampling.max_tokens:
                self.early.setdefault(position, token_id)
        if chunk.finish:
            self.finish = (chunk.position + len(chunk.token_ids), chunk.finish)
        start = len(self.received)
        while (token_id := self.early.pop(len(self.received), -1)) >= 0:
            self.received.append(token_id)
        ended = self.finish is not None and len(self.received) >= self.finish[0]
        return tuple(self.received[start:]), self.finish[1] if self.finish and ended else None

    def next_attempt(self, now: float) -> None:
        """Forget what the old attempt left in the air: positions after a gap, and its finish."""
        self.attempt = Attempt(number=self.attempt.number + 1, border=len(self.received), submitted_at=now)
        self.early.clear()
        self.finish = None
        self.resubmit_at = None

    def submitted(self, gateway_id: ServiceId, reply_to: Address, avoid: tuple[WorkerId, ...], now: float) -> Submitted:
        return Submitted(
            request_id=self.request_id,
            attempt=self.attempt.number,
            token_ids=self.prompt + tuple(self.received),
            emitted=len(self.received),
            sampling=self.sampling,
            time_left_s=max(0.0, self.deadline - now),
            waited_s=now - self.arrived_at,
            gateway_id=gateway_id,
            reply_to=reply_to,
            model=self.model,
            priority=self.priority,
            avoid=avoid,
        )

    def cancels(self) -> list[Command]:
        """To everyone who may have the attempt; a worker that it reaches only later is answered when it speaks."""
        return [cancel(peer, self.request_id, self.attempt.number) for peer in sorted(self.attempt.peers)]

    def check(self) -> None:
        assert len(self.received) <= self.sampling.max_tokens
        assert all(position > len(self.received) for position in self.early)
        assert self.attempt.border <= len(self.received)
        assert self.attempt.over or self.resubmit_at is None


def cancel(peer: Address, request_id: RequestId, attempt: int) -> Send:
    return Send(peer=peer, message=Cancel(request_id=request_id, attempt=attempt))
