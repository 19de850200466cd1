"""The loop in the middle of a worker: schedule, step, deal with the results; for ever."""

import structlog

from shared.engine.port import Draw, Row
from shared.errors import MeshError
from shared.kv.layout import cut
from shared.policy import handoff as h
from shared.policy.batching import Batch, Phase
from shared.policy.sequence import Sequence
from shared.wire.messages import StageTimes
from shared.wire.terms import PushMode
from shared.worker.engine_thread import StepAborted
from shared.worker.transfers import random_transfer_ids
from shared.worker.worker import Worker

log = structlog.get_logger()


async def compute(worker: Worker) -> None:
    while True:
        batch = worker.batcher.next_batch()
        if batch is None:
            worker.wake.clear()
            await worker.wake.wait()
            continue
        worker.in_step = batch.sequences
        if batch.phase is Phase.PREFILL:
            _start_prefill(worker, batch)
        started_at = worker.clock.now()
        tokens = await _step(worker, batch)
        worker.in_step = ()
        if any(token is not None for token in tokens):
            _measure(worker, batch, worker.clock.now() - started_at)
        for sequence, token in zip(batch.sequences, tokens, strict=True):
            _computed(worker, sequence, token, batch.phase)
        worker.outbox.flush()
        worker.feed_token(h.Ticked())


async def _step(worker: Worker, batch: Batch) -> list[int | None]:
    rows = [_row(worker, sequence) for sequence in batch.sequences]
    leaving = batch.phase is Phase.PREFILL and any(s.token_worker is not None for s in batch.sequences)
    try:
        return await worker.engine_thread.step(
            rows,
            on_layer=(lambda layer: _layer_done(worker, batch, layer)) if leaving else None,
            wanted=lambda: not all(s.cancelled for s in batch.sequences),
        )
    except (MeshError, MemoryError) as error:
        if not isinstance(error, StepAborted):
            log.error("step failed", reason=str(error))
            for sequence in batch.sequences:
                worker.report_failure(sequence.request, "step_failed", str(error))
        for sequence in batch.sequences:
            worker.cancel(sequence.key)
        return [None] * len(batch.sequences)


def _row(worker: Worker, sequence: Sequence) -> Row:
    sampling = sequence.request.sampling
    stops = () if sampling.ignore_eos else worker.facts.eos_token_ids
    held_back = sequence.position < sampling.min_tokens
    return Row(
        token_ids=tuple(sequence.tokens[sequence.computed :]),
        start=sequence.computed,
        blocks=tuple(worker.blocks.owned(sequence.key)),
        draw=Draw(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            choice=sampling.choice,
            position=sequence.position,
            banned=(*stops, *sampling.stop_token_ids) if held_back else (),
        ),
    )


def _start_prefill(worker: Worker, batch: Batch) -> None:
    now = worker.clock.now()
    for sequence in batch.sequences:
        sequence.prefill_started_at = now
        if sequence.token_worker is None:
            continue
        request = sequence.request
        layerwise = request.prompt_tokens >= worker.options.push_threshold
        mode = PushMode.LAYERWISE if layerwise else PushMode.SERIALIZED
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


def _layer_done(worker: Worker, batch: Batch, layer: int) -> None:
    """The KV of this layer lies in the pages: push what is to be pushed while the next layer is computed."""
    last = layer == worker.shape.layers - 1
    for sequence in batch.sequences:
        if sequence.token_worker is not None and not sequence.cancelled:
            layerwise = sequence.request.prompt_tokens >= worker.options.push_threshold
            if layerwise or last:
                worker.feed_prompt(h.SliceReady(key=sequence.key, index=layer if layerwise else 0))


def _computed(worker: Worker, sequence: Sequence, token: int | None, phase: Phase) -> None:
    if sequence.cancelled or token is None:
        worker.end(sequence.key)
        return
    sequence.computed = len(sequence.tokens)
    sequence.tokens.append(token)
    finish = sequence.finish_after(token, worker.facts.eos_token_ids, worker.facts.max_model_len)
    if finish is not None:
        worker.finished.append((worker.clock.now(), sequence.request))
    if phase is Phase.PREFILL:
        sequence.prefill_ended_at = worker.clock.now()
    first = phase is Phase.PREFILL and sequence.sampled == 1
    worker.outbox.add(sequence, finish, _stage(worker, sequence) if first or finish else None)
    if phase is Phase.PREFILL and sequence.token_worker is not None:
        worker.feed_prompt(h.FirstToken(key=sequence.key, token=token, last=finish is not None))
    elif finish is not None:
        worker.end(sequence.key)
    elif phase is Phase.PREFILL:
        worker.batcher.admit(sequence)


def _stage(worker: Worker, sequence: Sequence) -> StageTimes:
    now = worker.clock.now()
    computed_here = sequence.prefill_started_at > 0.0
    return StageTimes(
        worker_id=worker.options.worker_id,
        queue_s=max(0.0, sequence.prefill_started_at - sequence.arrived_at) if computed_here else 0.0,
        prefill_s=sequence.prefill_ended_at - sequence.prefill_started_at if computed_here else 0.0,
        decode_s=now - sequence.prefill_ended_at,
    )


def _measure(worker: Worker, batch: Batch, seconds: float) -> None:
    tokens = sum(s.pending_tokens for s in batch.sequences)
    (worker.prefill_speed if batch.phase is Phase.PREFILL else worker.decode_speed).measured(tokens, seconds)
