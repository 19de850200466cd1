"""A worker's report: its load as of the placement that it covers, its speed, its memory."""

from shared.kv.blocks import blocks_for
from shared.policy.batching import Batcher
from shared.policy.sequence import Sequence
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role
from shared.worker.load import LoopLag
from shared.worker.worker import Worker


def report_of(worker: Worker, lag: LoopLag) -> WorkerReport:
    options, facts, blocks = worker.options, worker.facts, worker.blocks
    waiting, incoming, coming = worker.batcher.waiting, worker.token_side.requests(), worker.coming.decodes()
    queued = [*waiting, *(piece.sequence for piece in worker.step.pieces)]
    prompts = [(s.computed, s.length) for s in queued if not s.sampled]
    prompts += [(0, tokens) for tokens in worker.coming.prompts()]
    again = [(s.computed, s.length) for s in queued if s.sampled]  # preempted decodes: work, but no prompts
    at_end = worker.answers.tokens_at_end
    decodes = [at_end(s.request.prompt_tokens, s.sampled, s.request.tokens_left) for s in worker.decoding()]
    decodes += [at_end(r.prompt_tokens, 0, r.tokens_left) for r in incoming]
    decodes += [at_end(prompt_tokens, 0, output_tokens) for prompt_tokens, output_tokens in coming]
    return WorkerReport(
        worker_id=options.worker_id,
        service=options.service,
        pid=options.pid,
        role=worker.role,
        role_pinned=worker.role_pinned,
        pool=_observed_pool(worker.role, prompts=bool(prompts), decodes=bool(decodes)),
        state=worker.state,
        model=options.model,
        max_model_len=facts.max_model_len,
        link_address=worker.links.address,
        covers=worker.coming.covers,
        queue_tokens=sum(end - start for start, end in prompts),
        queue_s=_prefill_s(worker.batcher, [*prompts, *again]),
        decodes=len(decodes),
        demand_blocks=sum(blocks_for(tokens, facts.block_size) for tokens in decodes),
        expected_output_tokens=worker.answers.mean_tokens,
        bounds_used=worker.answers.bounds_used,
        running=len(worker.sequences) - len(waiting),
        waiting=len(waiting),
        max_num_seqs=options.max_num_seqs,
        block_size=facts.block_size,
        kv_blocks_total=blocks.total,
        kv_blocks_used=blocks.used_blocks,
        kv_blocks_cached=0,
        kv_blocks_leaked=blocks.leaked([*worker.sequences, *(r.key for r in incoming)]),
        fit=worker.fitter.fit,
        step_target_s=worker.batcher.step_target_s,
        layers=facts.layers,
        kv_bytes_per_token=facts.kv_bytes_per_token * facts.layers,
        push_threshold=options.push_threshold,
        transport=worker.transport.kind,
        transport_link=options.transport_link,
        transport_bandwidth_gb_s=options.transport_bandwidth_gb_s,
        transport_latency_ms=options.transport_latency_ms,
        loop_lag_p99_s=lag.p99_s,
        cores=worker.engine_thread.cores,
    )


def _prefill_s(batcher: Batcher[Sequence], prompts: list[tuple[int, int]]) -> float:
    """Seconds of prefill alone of positions [start, end) of these prompts, in steps of the batcher's size."""
    tokens = sum(end - start for start, end in prompts)
    squares = sum(end * end - start * start for start, end in prompts)
    more_steps = max(0, -(-tokens // batcher.step_tokens) - 1)
    return batcher.costs.step_s(tokens, squares, 0, 0) + more_steps * batcher.costs.prefill_ms[0] / 1000


def _observed_pool(home: Role, *, prompts: bool, decodes: bool) -> Role:
    """Mixed is what a worker is while it holds, or has been placed, work of the other phase (Splitwise IV-A)."""
    lent = (home is Role.PROMPT and decodes) or (home is Role.TOKEN and prompts)
    return Role.MIXED if lent else home
