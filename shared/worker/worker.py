"""A worker: takes prompts from its stream and KV from its peers, computes, and sends tokens to the gateways.

    intake ─▶ Batcher ─▶ engine step ─▶ tokens to gateways
                 ▲            │ layers
                 │            ▼
      TokenSide ◀═ KV ═ PromptSide        (both deciders; Transfers moves the bytes)

This module holds the state; shared.worker.intake reacts to what comes in, shared.worker.compute is the loop in the
middle. Everything runs on the event loop; only `EngineThread` computes elsewhere. A sequence whose request has ended
while a step computes it keeps its blocks until that step is over.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

import structlog

from shared.broker.port import Broker
from shared.clock import Clock
from shared.ids import Address, Attempt, RequestId
from shared.kv.blocks import BlockAllocator, blocks_for
from shared.kv.layout import KvShape
from shared.link.port import Links
from shared.policy import handoff as h
from shared.policy.batch import PROMPT_SHARE, aimed_at
from shared.policy.batching import Batch, Batcher, BatchLimits
from shared.policy.cost_fit import CostFitter
from shared.policy.demand import AnswerLength
from shared.policy.fence import Fence
from shared.policy.prompt_side import Event as PromptEvent
from shared.policy.prompt_side import PromptSide
from shared.policy.sequence import Sequence
from shared.policy.token_side import Event as TokenEvent
from shared.policy.token_side import TokenSide
from shared.tasks import Spawn
from shared.transport.port import Transport
from shared.wire.messages import Failed, HandedOff, Release, Submitted
from shared.wire.reports import RoleChanged
from shared.wire.terms import State
from shared.worker.engine_thread import EngineThread
from shared.worker.load import Coming
from shared.worker.options import WorkerOptions
from shared.worker.outbox import Outbox
from shared.worker.transfers import Transfers, random_transfer_ids

log = structlog.get_logger()

FINISHED_KEPT = 1000
IDLE: Batch[Sequence] = Batch((), ())


class Worker:
    """The state of one worker, and what happens to requests in it.

    finished: requests whose end was sent lately; if the link to their gateway then breaks, it may not have arrived.
    step: what is computed right now.
    """

    def __init__(
        self,
        *,
        options: WorkerOptions,
        engine_thread: EngineThread,
        broker: Broker,
        links: Links,
        transport: Transport,
        clock: Clock,
        spawn: Spawn,
        fitter: CostFitter | None = None,
    ) -> None:
        facts = engine_thread.engine.facts
        self.options = options
        self.facts = facts
        self.links = links
        self.broker = broker
        self.transport = transport
        self.clock = clock
        self.state = State.STARTING
        self.role = options.role
        self.role_pinned = False
        self.role_fence = 0
        self.role_changes: deque[RoleChanged] = deque()  # to be announced
        self.shape = KvShape(layers=facts.layers, kv_heads=facts.kv_heads, kv_bytes_per_token=facts.kv_bytes_per_token)
        self.blocks = BlockAllocator(facts.kv_blocks, facts.block_size)
        self.fitter = fitter or CostFitter()
        self.batcher = Batcher[Sequence](
            self.blocks,
            BatchLimits(
                max_num_seqs=options.max_num_seqs,
                max_num_batched_tokens=options.max_num_batched_tokens,
                step_target_s=aimed_at(options.tbt_target_s),
                prompt_blocks=int(PROMPT_SHARE * facts.kv_blocks),
            ),
            self.fitter.fit.costs,
        )
        self.answers = AnswerLength()
        self.prompt_side = PromptSide()
        self.token_side = TokenSide(
            self.blocks,
            self.shape,
            max_model_len=facts.max_model_len,
            fresh_transfer_id=random_transfer_ids(),
            answers=self.answers,
            admits=self._admits,
            growth=self._growth_blocks,
        )
        self.transfers = Transfers(
            engine=engine_thread.engine,
            transport=transport,
            blocks=self.blocks,
            shape=self.shape,
            feed=self._on_transfer,
            expects=self.token_side.expects,
            spawn=spawn,
        )
        self.coming = Coming(options.worker_id)
        self.sequences: dict[Attempt, Sequence] = {}
        self.engine_thread = engine_thread
        self.outbox = Outbox(links)
        self.fence = Fence()
        self.finished: deque[tuple[float, Submitted]] = deque(maxlen=FINISHED_KEPT)
        self.step: Batch[Sequence] = IDLE
        self.wake = asyncio.Event()
        self.news = asyncio.Event()  # to be reported at once
        self.leaving = asyncio.Event()

    # ---- the two deciders -------------------------------------------------------------------------------------------

    def feed_prompt(self, event: PromptEvent) -> None:
        self._carry_out(self.prompt_side.handle(event, self.clock.now()))

    def feed_token(self, event: TokenEvent) -> None:
        free_before = self.blocks.free_blocks
        self._carry_out(self.token_side.handle(event, self.clock.now()))
        if self.blocks.free_blocks > free_before:
            self.wake.set()

    def _on_transfer(self, event: h.SlicePushed | h.SliceArrived | h.ReceivesPosted | h.TransferFailed) -> None:
        match event:
            case h.SlicePushed():
                self.feed_prompt(event)
            case h.SliceArrived() | h.ReceivesPosted():
                self.feed_token(event)
            case h.TransferFailed():
                self.feed_prompt(event)
                self.feed_token(event)

    def _carry_out(self, commands: Iterable[h.Command]) -> None:
        for command in commands:
            match command:
                case h.Send():
                    self.links.send(command.peer, command.message)
                case h.Push() | h.Fill() | h.PostReceives():
                    self.transfers.start(command)
                case h.CloseEndpoint():
                    self.transfers.close_endpoint(command.kv_address)
                case h.HandOffDone():
                    self._handed_off(command)
                case h.DecodeHere():
                    self._decode_here(command)
                case h.Admit():
                    self._admit(command)
                case h.Forget():
                    if command.failure is not None:
                        self.report_failure(command.request, "handoff_failed", command.failure)
                    self.end(command.request.key)

    def _handed_off(self, done: h.HandOffDone) -> None:
        sequence = self.sequences[done.key]
        request = sequence.request
        self.links.send(
            request.reply_to,
            HandedOff(
                request_id=request.request_id,
                attempt=request.attempt,
                mode=done.mode,
                transport=self.transport.kind,
                kv_bytes=done.size_bytes,
                transfer_s=done.transfer_s,
                exposed_s=done.exposed_s,
                resent_slices=done.resent,
            ),
        )
        self.end(done.key)

    def _decode_here(self, command: h.DecodeHere) -> None:
        sequence = self.sequences[command.key]
        log.info("decoding where the prompt lies", request_id=sequence.request.request_id, reason=command.reason)
        sequence.token_worker = None
        if sequence.sampled and not sequence.cancelled:
            self.batcher.admit(sequence)
            self.wake.set()

    def _admit(self, command: h.Admit) -> None:
        request = command.request
        now = self.clock.now()
        sequence = Sequence(
            request=request,
            arrived_at=command.arrived_at,
            token_worker=None,
            received_from=command.peer,
            tokens=[*request.token_ids, command.first_token],
            computed=request.prompt_tokens,
            prefill_ended_at=now,
        )
        self.sequences[request.key] = sequence
        self.batcher.admit(sequence)
        self.wake.set()

    def in_step(self) -> tuple[Sequence, ...]:
        """What the running step computes; the order is that of its rows."""
        return (*(piece.sequence for piece in self.step.pieces), *self.step.decodes)

    # ---- ends -------------------------------------------------------------------------------------------------------

    def cancel_attempts(self, request_id: RequestId, newest: int) -> None:
        """End this attempt and older ones; those not seen yet are refused when they come."""
        self.fence.close(request_id, newest)
        self.coming.cancel(request_id, newest)
        held = [*self.sequences, *(request.key for request in self.token_side.requests())]
        for key in [k for k in held if k[0] == request_id and k[1] <= newest]:
            self.cancel(key)

    def cancel(self, key: Attempt) -> None:
        sequence = self.sequences.get(key)
        if sequence is not None and sequence.token_worker is not None and key not in self.prompt_side:
            # Not prefilled yet, so there is no hand-off to end; but the token worker expects one.
            self.links.send(sequence.token_worker, Release(request_id=key[0], attempt=key[1]))
        self.feed_token(h.Cancelled(key=key))
        self.feed_prompt(h.Cancelled(key=key))
        self.end(key)

    def end(self, key: Attempt) -> None:
        """Take the sequence out and free its blocks; if a step computes it right now, when that step is over."""
        sequence = self.sequences.get(key)
        if sequence is None:
            return
        self.batcher.remove(key)
        if sequence in self.in_step():
            sequence.cancelled = True
            return
        del self.sequences[key]
        if self.blocks.release(key):
            self.feed_token(h.Ticked())
        self.wake.set()

    def report_failure(self, request: Submitted, code: str, message: str) -> None:
        self.links.send(
            request.reply_to,
            Failed(request_id=request.request_id, attempt=request.attempt, retryable=True, code=code, message=message),
        )

    def give_back(self, code: str, message: str, gateway: Address | None = None) -> None:
        """Give every request (of this gateway) back to its gateway, which submits it elsewhere."""
        running = [s.request for s in self.sequences.values() if not s.cancelled]
        held = [*running, *self.token_side.requests()]
        for request in [r for r in held if gateway is None or r.reply_to == gateway]:
            self.report_failure(request, code, message)
            self.cancel(request.key)

    def decoding(self) -> list[Sequence]:
        """What decodes here, now or after its prefill."""
        return [s for s in self.sequences.values() if s.token_worker is None and not s.cancelled]

    def _admits(self, rank: float) -> bool:
        """Decodes that lack a block, and older prompts that wait for memory, come before newcomers; but a worker whose
        own KV waits for room elsewhere makes room for others', so that no two wait for each other."""
        if self.batcher.short_of_blocks:
            return False
        return self.batcher.yields_to(rank) or self.prompt_side.waits_for_room

    def _growth_blocks(self) -> int:
        """KV blocks that the running decodes are expected to need still."""
        size, at_end = self.blocks.block_size, self.answers.tokens_at_end
        running = self.batcher.running
        ends = (blocks_for(at_end(s.request.prompt_tokens, s.sampled, s.request.tokens_left), size) for s in running)
        return sum(max(0, end - len(self.blocks.owned(s.key))) for s, end in zip(running, ends, strict=True))

    @property
    def idle(self) -> bool:
        return not self.sequences and not len(self.token_side)

    def close(self) -> None:
        self.engine_thread.close()

    def check(self) -> None:
        """Every block is owned by a live request; queues, deciders and allocator agree."""
        self.blocks.check()
        self.batcher.check()
        self.prompt_side.check()
        self.token_side.check()
        live = [*self.sequences, *(r.key for r in self.token_side.requests())]
        assert self.blocks.leaked(live) == 0, "blocks without a request"
