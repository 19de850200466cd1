"""The loop in the middle of a worker: schedule, step, deal with the results; for ever."""

import asyncio
from dataclasses import replace

import structlog

from shared.engine.port import Draw, Row
from shared.errors import MeshError
from shared.kv.layout import cut, slices_done
from shared.policy import handoff as h
from shared.policy.batching import Batch, Piece
from shared.policy.sequence import Sequence
from shared.wire.messages import StageTimes, Submitted
from shared.wire.terms import PushMode
from shared.worker.engine_thread import StepAborted
from shared.worker.transfers import random_transfer_ids
from shared.worker.worker import IDLE, Worker

log = structlog.get_logger()

IDLE_S = 10.0  # without work, before memory goes back: the first step after that takes milliseconds longer


async def compute(worker: Worker) -> None:
    while True:
        batch = worker.batcher.next_batch()
        if batch is None:
            worker.wake.clear()
            worker.engine_thread.rest()
            await _woken(worker)
            continue
        worker.step = batch
        for piece in batch.pieces:
            if piece.sequence.computed == 0 and piece.sequence.sampled == 0:
                _start_prefill(worker, piece.sequence)
        tokens = await _step(worker, batch)
        worker.step = IDLE
        for piece, token in zip(batch.pieces, tokens[: len(batch.pieces)], strict=True):
            _piece_computed(worker, piece, token)
        for sequence, token in zip(batch.decodes, tokens[len(batch.pieces) :], strict=True):
            _decoded(worker, sequence, token)
        worker.outbox.flush()
        worker.feed_token(h.Ticked())


async def _woken(worker: Worker) -> None:
    try:
        async with asyncio.timeout(IDLE_S):
            await worker.wake.wait()
    except TimeoutError:
        await worker.engine_thread.give_back_memory()
        await worker.wake.wait()


# ---- the step -------------------------------------------------------------------------------------------------------


async def _step(worker: Worker, batch: Batch[Sequence]) -> list[int | None]:
    """A token for each piece that ends its prompt, and for each decode; after a failure all of them are cancelled."""
    rows = [_row(worker, piece.sequence, piece.end) for piece in batch.pieces]
    rows += [_row(worker, sequence, sequence.length) for sequence in batch.decodes]
    computed = worker.in_step()
    leaving = any(piece.sequence.token_worker is not None for piece in batch.pieces)
    work, started_at = _work(batch), worker.clock.now()
    try:
        tokens = await worker.engine_thread.step(
            rows,
            on_layer=(lambda layer: _layer_done(worker, batch, layer)) if leaving else None,
            wanted=lambda: not all(s.cancelled for s in computed),
        )
    except (MeshError, MemoryError) as error:
        if not isinstance(error, StepAborted):
            log.error("step failed", reason=str(error))
            for sequence in computed:
                worker.report_failure(sequence.request, "step_failed", str(error))
        for sequence in computed:
            worker.cancel(sequence.key)
        return [None] * len(rows)
    worker.fitter.observe(*work, worker.clock.now() - started_at, worker.engine_thread.reinforced)
    worker.batcher.costs = worker.fitter.fit.costs
    return tokens


def _work(batch: Batch[Sequence]) -> tuple[int, int, int, int]:
    """Tokens and squares of the pieces, context and number of the decodes: see Costs.step_s."""
    tokens = sum(p.end - p.sequence.computed for p in batch.pieces)
    squares = sum(p.end**2 - p.sequence.computed**2 for p in batch.pieces)
    return tokens, squares, sum(s.length for s in batch.decodes), len(batch.decodes)


def _row(worker: Worker, sequence: Sequence, end: int) -> Row:
    return Row(
        token_ids=tuple(sequence.tokens[sequence.computed : end]),
        start=sequence.computed,
        blocks=tuple(worker.blocks.owned(sequence.key)),
        draw=_draw(worker, sequence) if end == sequence.length else None,
    )


def _draw(worker: Worker, sequence: Sequence) -> Draw:
    sampling = sequence.request.sampling
    stops = () if sampling.ignore_eos else worker.facts.eos_token_ids
    held_back = sequence.position < sampling.min_tokens
    return Draw(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        choice=sampling.choice,
        position=sequence.position,
        banned=(*stops, *sampling.stop_token_ids) if held_back else (),
    )


# ---- the hand-off ---------------------------------------------------------------------------------------------------


def _start_prefill(worker: Worker, sequence: Sequence) -> None:
    now = sequence.prefill_started_at = worker.clock.now()
    if sequence.token_worker is None:
        return
    request = replace(sequence.request, waited_s=now - sequence.arrived_at)  # its rank is the same there
    mode = _push_mode(worker, request)
    slices = cut(mode, request.prompt_tokens, worker.shape)
    worker.feed_prompt(
        h.PrefillStarted(
            request=request,
            peer=sequence.token_worker,
            transfer_id=next(random_transfer_ids()),
            mode=mode,
            slices=len(slices),
            size_bytes=sum(s.size_bytes(worker.shape) for s in slices),
            kv_address=worker.transport.address,
        )
    )


def _layer_done(worker: Worker, batch: Batch[Sequence], layer: int) -> None:
    """This layer's KV of all pieces lies in the pages: push what is complete while the next layer is computed."""
    for piece in batch.pieces:
        sequence, request = piece.sequence, piece.sequence.request
        if sequence.token_worker is None or sequence.cancelled:
            continue
        mode, start = _push_mode(worker, request), sequence.computed
        done = slices_done(mode, request.prompt_tokens, worker.shape, layer=layer, start=start, end=piece.end)
        for index in done:
            worker.feed_prompt(h.SliceReady(key=sequence.key, index=index))


def _push_mode(worker: Worker, request: Submitted) -> PushMode:
    layerwise = request.prompt_tokens >= worker.options.push_threshold
    return PushMode.LAYERWISE if layerwise else PushMode.SERIALIZED


# ---- the results ----------------------------------------------------------------------------------------------------


def _piece_computed(worker: Worker, piece: Piece[Sequence], token: int | None) -> None:
    sequence = piece.sequence
    if sequence.cancelled:
        worker.end(sequence.key)
        return
    sequence.computed = piece.end
    if token is None:
        worker.batcher.enqueue(sequence)
        return
    first = sequence.sampled == 0
    if first:
        sequence.prefill_ended_at = worker.clock.now()
    over = _sampled(worker, sequence, token, first=first)
    if sequence.token_worker is not None:
        worker.feed_prompt(h.FirstToken(key=sequence.key, token=token, last=over))
    elif over:
        _ended(worker, sequence)
    else:
        worker.batcher.admit(sequence)


def _decoded(worker: Worker, sequence: Sequence, token: int | None) -> None:
    if sequence.cancelled or token is None:
        worker.end(sequence.key)
        return
    sequence.computed = sequence.length
    if _sampled(worker, sequence, token):
        _ended(worker, sequence)


def _sampled(worker: Worker, sequence: Sequence, token: int, *, first: bool = False) -> bool:
    """Send the token to the gateway; whether it was the last."""
    sequence.tokens.append(token)
    finish = sequence.finish_after(token, worker.facts.eos_token_ids, worker.facts.max_model_len)
    worker.outbox.add(sequence, finish, _stage(worker, sequence) if first or finish else None)
    if finish is not None:
        worker.finished.append((worker.clock.now(), sequence.request))
    return finish is not None


def _ended(worker: Worker, sequence: Sequence) -> None:
    worker.answers.ended(sequence.position, sequence.request.sampling.max_tokens)
    worker.end(sequence.key)


def _stage(worker: Worker, sequence: Sequence) -> StageTimes:
    now = worker.clock.now()
    computed_here = sequence.prefill_started_at > 0.0
    return StageTimes(
        worker_id=worker.options.worker_id,
        queue_s=max(0.0, sequence.prefill_started_at - sequence.arrived_at) if computed_here else 0.0,
        prefill_s=sequence.prefill_ended_at - sequence.prefill_started_at if computed_here else 0.0,
        decode_s=now - sequence.prefill_ended_at,
    )
