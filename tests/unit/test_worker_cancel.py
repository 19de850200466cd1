"""A cancel in each phase of a request (the phase table of docs/architecture.md): everything is free within a second."""

import asyncio
from collections.abc import Callable

import pytest

from shared.ids import Address
from shared.policy.batching import Batcher
from shared.policy.sequence import Sequence
from shared.wire.messages import Cancel
from tests.support.gates import GatedEngine
from tests.support.mesh import LocalMesh

PROMPT = list(range(100))
SOON_S = 1.0


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def gated(stop_at: int | None) -> tuple[GatedEngine, Callable[[], GatedEngine]]:
    """The first worker (prompt-0) gets the gated engine, the others run freely."""
    engine = GatedEngine(stop_at)
    engines = iter([engine])
    return engine, lambda: next(engines, GatedEngine())


async def test_before_it_is_placed() -> None:
    async with LocalMesh() as mesh:
        for name in mesh.members:
            mesh.gateway.send(Address(name), Cancel(request_id="r", attempt=1))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        stream = await mesh.submit(PROMPT, name="r")
        await asyncio.sleep(0.05)
        assert not stream.tokens
        await mesh.settle(SOON_S)


async def test_a_tombstone_does_not_stop_the_next_attempt() -> None:
    async with LocalMesh() as mesh:
        for name in mesh.members:
            mesh.gateway.send(Address(name), Cancel(request_id="r", attempt=1))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        stream = await (await mesh.submit(PROMPT, name="r", attempt=2)).end()
        assert len(stream.text) == 8


async def test_queued_for_prefill() -> None:
    engine, make = gated(stop_at=1)
    async with LocalMesh(make_engine=make) as mesh:
        first = await mesh.submit(PROMPT)
        await until(engine.reached.is_set)
        queued = await mesh.submit(PROMPT)
        await until(lambda: len(mesh.worker("prompt-0").batcher.waiting) == 1)
        mesh.cancel(queued)
        await until(lambda: not mesh.worker("prompt-0").batcher.waiting, SOON_S)
        engine.release()
        assert len((await first.end()).text) == 8
        await mesh.settle(SOON_S)
        assert not queued.tokens


@pytest.mark.parametrize("layer", [1, 3])
async def test_prefilling_and_not_granted(layer: int) -> None:
    engine, make = gated(stop_at=layer)
    async with LocalMesh(make_engine=make) as mesh:
        mesh.network.partition(Address("prompt-0"), Address("token-0"))
        stream = await mesh.submit(PROMPT)
        await until(engine.reached.is_set)
        mesh.cancel(stream)
        await until(lambda: len(mesh.worker("prompt-0").prompt_side) == 0, SOON_S)
        mesh.network.heal(Address("prompt-0"), Address("token-0"))
        engine.release()
        await mesh.settle(SOON_S)
        assert not stream.tokens, "the step ended between two layers"


@pytest.mark.parametrize("layer", [1, 3])
async def test_prefilling_and_granted(layer: int) -> None:
    engine, make = gated(stop_at=layer)
    async with LocalMesh(make_engine=make) as mesh:
        stream = await mesh.submit(PROMPT)
        await until(engine.reached.is_set)
        await until(lambda: mesh.worker("token-0").blocks.used_blocks > 0)
        mesh.cancel(stream)
        await until(lambda: mesh.worker("token-0").blocks.used_blocks == 0, SOON_S)
        engine.release()
        await mesh.settle(SOON_S)
        await asyncio.sleep(0.05)
        assert not mesh.fabric.receives_under_way(), "what was posted has been filled"


@pytest.mark.parametrize("granted", [True, False])
async def test_between_and_within_pieces_of_a_prompt(granted: bool) -> None:
    """A prompt of 250 tokens in pieces of 40 beside another; it is dropped in its second piece, or between two."""
    engine, make = gated(stop_at=None)
    async with LocalMesh(make_engine=make, max_num_batched_tokens=40) as mesh:
        worker = mesh.worker("prompt-0")
        if not granted:
            mesh.network.partition(Address("prompt-0"), Address("token-0"))
        for within in (True, False):
            engine.stop(1)
            stream = await mesh.submit(list(range(250)))
            await until(engine.reached.is_set)
            engine.release(then_stop_at=1)
            await until(lambda: engine.reached.is_set() and worker.in_step()[0].computed > 0)
            assert worker.in_step()[0].computed == 40 and worker.blocks.used_blocks == 16
            key = stream.request.key
            if within:
                mesh.cancel(stream)
                await until(lambda: worker.in_step()[0].cancelled, SOON_S)
            else:
                sequence = worker.sequences[key]
                enqueue = worker.batcher.enqueue

                def cancelled_between(one: Sequence, enqueue: Callable[[Sequence], None] = enqueue) -> None:
                    enqueue(one)
                    worker.cancel(one.key)

                worker.batcher.enqueue = cancelled_between  # type: ignore[method-assign]
                assert sequence.token_worker is not None
            engine.release()
            await until(lambda key=key: key not in worker.sequences, SOON_S)  # type: ignore[misc]
            assert worker.blocks.used_blocks == 0 and key not in worker.prompt_side and not worker.batcher.waiting
            worker.batcher.enqueue = Batcher.enqueue.__get__(worker.batcher)  # type: ignore[method-assign]
            assert not stream.tokens
        if not granted:
            mesh.network.heal(Address("prompt-0"), Address("token-0"))
        await until(lambda: mesh.worker("token-0").idle, SOON_S)
        after = await (await mesh.submit(PROMPT)).end()
        assert len(after.text) == 8
        await mesh.settle(SOON_S)
        assert not mesh.fabric.receives_under_way(), "what was posted has been filled"


async def test_one_of_two_in_a_batch() -> None:
    """The other prompt of the step is computed to its end and served."""
    engine, make = gated(stop_at=0)
    async with LocalMesh(make_engine=make) as mesh:
        blocker = await mesh.submit(PROMPT)
        await until(engine.reached.is_set)
        kept, dropped = await mesh.submit(PROMPT[:30]), await mesh.submit(PROMPT[:40])
        await until(lambda: len(mesh.worker("prompt-0").batcher.waiting) == 2)
        engine.release(then_stop_at=2, rows=2)
        await until(engine.reached.is_set)
        mesh.cancel(dropped)
        await until(lambda: all(s.cancelled for s in mesh.worker("prompt-0").in_step() if s.key == dropped.request.key))
        engine.release()
        assert len((await kept.end()).text) == 8 and len((await blocker.end()).text) == 8
        await mesh.settle(SOON_S)
        assert not dropped.tokens


async def test_pushed_and_not_accepted() -> None:
    async with LocalMesh() as mesh:
        mesh.fabric.delay_s = 0.2
        stream = await mesh.submit(PROMPT)
        await stream.until(lambda s: len(s.tokens) == 1)
        mesh.cancel(stream)
        await mesh.settle(SOON_S)
        await asyncio.sleep(0.3)
        assert not mesh.fabric.receives_under_way()
        assert len(stream.tokens) == 1 and stream.handed_off is None


async def test_decoding() -> None:
    async with LocalMesh() as mesh:
        stream = await mesh.submit(PROMPT, max_tokens=100_000)
        await stream.until(lambda s: len(s.tokens) > 5)
        mesh.cancel(stream)
        await mesh.settle(SOON_S)
        seen = len(stream.tokens)
        await asyncio.sleep(0.05)
        assert len(stream.tokens) - seen <= 1


async def test_ended() -> None:
    async with LocalMesh() as mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        await mesh.settle()
        mesh.cancel(stream)
        await asyncio.sleep(0.02)
        await mesh.settle(SOON_S)


async def test_the_gateway_dies_in_every_phase_at_once() -> None:
    """Queued, prefilling, decoding: all of its requests end within the time that a link takes to be lost."""
    engine, make = gated(stop_at=None)
    async with LocalMesh(make_engine=make) as mesh:
        decoding = await mesh.submit(PROMPT, max_tokens=100_000)
        await decoding.until(lambda s: len(s.tokens) > 5)
        engine.stop(1)
        await mesh.submit(PROMPT)
        await until(engine.reached.is_set)
        await mesh.submit(PROMPT)
        await until(lambda: len(mesh.worker("prompt-0").batcher.waiting) == 1)
        mesh.network.kill(mesh.gateway.address)
        await until(lambda: mesh.worker("token-0").idle and not mesh.worker("prompt-0").batcher.waiting, SOON_S)
        engine.release()
        await mesh.settle(SOON_S)


async def test_a_flipped_byte_is_repaired_by_pushing_that_slice_again() -> None:
    async with LocalMesh() as mesh:
        mesh.fabric.flip(matches=lambda tag: tag & 0xFFFF == 2)
        stream = await (await mesh.submit(PROMPT)).end()
        await mesh.settle()
        assert stream.handed_off is not None and stream.handed_off.resent_slices == 1
        healthy = await (await mesh.submit(PROMPT)).end()
        assert stream.text == healthy.text


async def test_damage_without_end_is_survived_by_decoding_at_the_prompt_worker() -> None:
    async with LocalMesh() as mesh:
        mesh.fabric.flip(count=1000)
        stream = await (await mesh.submit(PROMPT)).end()
        assert len(stream.text) == 8 and stream.handed_off is None
        await mesh.settle()


async def test_draining_gives_back_what_does_not_end_in_time() -> None:
    async with LocalMesh() as mesh:
        stream = await mesh.submit(PROMPT, max_tokens=1_000_000)
        await stream.until(lambda s: len(s.tokens) > 3)
        mesh.members["token-0"].supervisor.stopping.set()
        await stream.until(lambda s: s.failed is not None, 5.0)
        assert stream.failed is not None and stream.failed.retryable
        await mesh.members.pop("token-0").task
