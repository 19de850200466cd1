"""The shell around the session decider: feeds it events, carries out its commands, fills each answer's mailbox."""

import asyncio

import structlog

from services.gateway import events as ev
from services.gateway.events import Command, Deliver, End, Outcome, Send, Submit, Watch
from services.gateway.metrics import Metrics
from services.gateway.sessions import Sessions
from shared.broker.port import Broker
from shared.clock import Clock
from shared.errors import Transient
from shared.ids import RequestId
from shared.link.port import Links, Received
from shared.tasks import Spawn
from shared.wire.messages import Chunk, HandedOff, Submitted, Tokens
from shared.wire.streams import SUBMITTED
from shared.wire.terms import Finish

log = structlog.get_logger()


class Mailbox:
    """What has come for one answer and was not fetched yet. Made by Switchboard.open."""

    def __init__(self, request_id: RequestId, opened_at: float) -> None:
        self.request_id = request_id
        self.opened_at = opened_at
        self.last_token_at: float | None = None
        self.ended = False
        self._tokens: list[int] = []
        self._end: Finish | End | None = None
        self._news = asyncio.Event()

    def put(self, token_ids: tuple[int, ...], end: Finish | End | None) -> None:
        self._tokens += token_ids
        self._end = end
        self.ended = end is not None
        self._news.set()

    async def fetch(self) -> tuple[list[int], Finish | End | None]:
        """All tokens that have come since, at least one unless it ends; several only if the reader is slow."""
        await self._news.wait()
        self._news.clear()
        tokens, self._tokens = self._tokens, []
        return tokens, self._end


class Switchboard:
    def __init__(
        self, *, sessions: Sessions, broker: Broker, links: Links, clock: Clock, spawn: Spawn, metrics: Metrics
    ) -> None:
        self.sessions = sessions
        self._broker = broker
        self._links = links
        self._clock = clock
        self._spawn = spawn
        self._metrics = metrics
        self._mailboxes: dict[RequestId, Mailbox] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, opened: ev.Opened) -> Mailbox:
        mailbox = Mailbox(opened.request_id, self._clock.now())
        self._mailboxes[opened.request_id] = mailbox
        self._idle.clear()
        self._metrics.prompt_tokens.inc(len(opened.prompt))
        self.feed(opened)
        return mailbox

    def leave(self, mailbox: Mailbox, outcome: Outcome) -> None:
        """The reader is done with this mailbox; what still runs for it is cancelled."""
        if not mailbox.ended:
            self._account(mailbox, outcome)
            stopped = outcome is Outcome.COMPLETED
            event = ev.StopStringMet if stopped else ev.ClientLeft
            self.feed(event(request_id=mailbox.request_id))
        self._mailboxes.pop(mailbox.request_id, None)
        if not self._mailboxes:
            self._idle.set()

    async def until_idle(self) -> None:
        await self._idle.wait()

    async def listen(self) -> None:
        """Feed every link event, for ever."""
        while True:
            event = await self._links.receive()
            if isinstance(event, Received):
                self._measure(event)
            self.feed(event)

    def feed(self, event: ev.Event) -> None:
        for command in self.sessions.handle(event, self._clock.now()):
            self._carry_out(command)
        self._set_alarm()

    def close(self) -> None:
        if self._alarm:
            self._alarm.cancel()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Deliver(request_id=request_id, token_ids=token_ids, finish=finish):
                if mailbox := self._mailboxes.get(request_id):
                    self._count_tokens(mailbox, len(token_ids))
                    mailbox.put(token_ids, finish)
                    if finish:
                        self._account(mailbox, Outcome.COMPLETED)
            case End(request_id=request_id):
                if mailbox := self._mailboxes.get(request_id):
                    log.warning("request ended", request_id=request_id, code=command.code, reason=command.message)
                    mailbox.put((), command)
                    self._account(mailbox, command.outcome)
            case Send(peer=peer, message=message):
                self._links.send(peer, message)
            case Watch(peer=peer):
                self._links.watch(peer)
            case Submit(message=message):
                self._spawn(self._publish(message), name=f"submit {message.request_id}")

    async def _publish(self, message: Submitted) -> None:
        try:
            await self._broker.publish(SUBMITTED, message)
        except Transient as error:
            log.warning("not submitted", request_id=message.request_id, reason=str(error))
            self.feed(ev.SubmitFailed(request_id=message.request_id, attempt=message.attempt))

    def _set_alarm(self) -> None:
        """One timer, at the decider's next point in time."""
        at = self.sessions.wake_at
        if at == self._alarm_at and self._alarm:
            return
        if self._alarm:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, at
        if at is not None:
            delay_s = max(0.0, at - self._clock.now())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.feed(ev.Woke())

    def _count_tokens(self, mailbox: Mailbox, count: int) -> None:
        if not count:
            return
        now = self._clock.now()
        if mailbox.last_token_at is None:
            self._metrics.time_to_first_token.observe(now - mailbox.opened_at)
        else:
            self._metrics.inter_token_latency.observe(now - mailbox.last_token_at)
        mailbox.last_token_at = now
        self._metrics.generation_tokens.inc(count)

    def _account(self, mailbox: Mailbox, outcome: Outcome) -> None:
        self._metrics.requests.labels(outcome=outcome.value).inc()
        if outcome is Outcome.COMPLETED:
            self._metrics.e2e_latency.observe(self._clock.now() - mailbox.opened_at)

    def _measure(self, received: Received) -> None:
        match received.message:
            case HandedOff() as handed_off:
                self._metrics.observe_transfer(handed_off)
            case Tokens(chunks=chunks):
                for chunk in chunks:
                    self._measure_stages(chunk)
            case _:
                pass

    def _measure_stages(self, chunk: Chunk) -> None:
        if chunk.stage is None or chunk.request_id not in self._mailboxes:
            return
        if chunk.stage.prefill_s and not chunk.position:
            self._metrics.queue_time.observe(chunk.stage.queue_s)
            self._metrics.prefill_time.observe(chunk.stage.prefill_s)
        if chunk.finish:
            self._metrics.decode_time.observe(chunk.stage.decode_s)
