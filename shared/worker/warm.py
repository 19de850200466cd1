"""A few small steps before a worker serves, so that its first report is no mere guess."""

from shared.clock import Clock
from shared.engine.port import Draw, Engine, Row
from shared.policy.cost_fit import CostFitter

WARM_S = 0.3
PROMPTS = (16, 64, 256)
BATCHES = (1, 4)
_DRAW = Draw(temperature=0.0, top_k=0, top_p=1.0, seed=0, choice=0, position=0)


def warm(engine: Engine, clock: Clock) -> CostFitter:
    """Costs as measured on free blocks: prompts and decodes in turn, from small to large, until WARM_S have passed. The
    first of each kind is not counted: it is slow."""
    fitter, started_s = CostFitter(), clock.now()
    _prefill(engine, clock, PROMPTS[0])
    _decode(engine, clock, BATCHES[0])
    for tokens, batch in zip(PROMPTS, (*BATCHES, BATCHES[-1]), strict=True):
        if tokens > PROMPTS[0] and clock.now() > started_s + WARM_S:
            break
        if tokens < engine.facts.kv_blocks * engine.facts.block_size:
            fitter.observe(tokens, tokens * tokens, 0, 0, _prefill(engine, clock, tokens))
        if batch <= engine.facts.kv_blocks:
            fitter.observe(0, 0, 2 * batch, batch, _decode(engine, clock, batch))
    return fitter


def _prefill(engine: Engine, clock: Clock, tokens: int) -> float:
    return _step_s(engine, clock, [Row(token_ids=[1] * tokens, start=0, blocks=_blocks(engine, tokens), draw=_DRAW)])


def _decode(engine: Engine, clock: Clock, batch: int) -> float:
    return _step_s(engine, clock, [Row(token_ids=[1], start=1, blocks=[block], draw=_DRAW) for block in range(batch)])


def _blocks(engine: Engine, tokens: int) -> range:
    return range(-(-tokens // engine.facts.block_size))


def _step_s(engine: Engine, clock: Clock, rows: list[Row]) -> float:
    before_s = clock.now()
    engine.step(rows)
    return clock.now() - before_s
