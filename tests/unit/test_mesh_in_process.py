"""The whole mesh in one process: tokens are those that the engine alone would produce, and nothing stays behind."""

import pytest

from shared.engine.fake import GREEDY, FakeEngine
from shared.engine.port import Draw
from shared.policy.routing import Limits
from shared.wire.terms import Finish, PushMode
from tests.support.mesh import LocalMesh

PROMPT = [(7 * i) % 251 for i in range(50)]


def expected(prompt: list[int], count: int, draw: Draw = GREEDY) -> list[int]:
    return FakeEngine.expected(prompt, count, draw)


@pytest.mark.parametrize("push_threshold", [0, 1000], ids=["layerwise", "serialized"])
async def test_prefill_and_decode_on_separate_workers(push_threshold: int) -> None:
    async with LocalMesh(push_threshold=push_threshold) as mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        assert stream.text == expected(PROMPT, 8) and stream.finish is Finish.LENGTH
        await mesh.settle()
        assert stream.handed_off is not None
        assert stream.handed_off.mode is (PushMode.SERIALIZED if push_threshold else PushMode.LAYERWISE)
        assert mesh.worker("prompt-0").transfers.bytes_pushed == stream.handed_off.kv_bytes > 0


async def test_prompts_in_pieces_beside_decodes_change_no_text() -> None:
    """A mixed worker with steps of at most 40 prompt tokens: pieces, whole prompts and decodes share steps."""
    prompts = [[(n * 31 + i) % 256 for i in range(1 + 97 * n % 300)] for n in range(12)]
    async with LocalMesh(prompt=0, token=0, mixed=1, max_num_batched_tokens=40) as mesh:
        streams = [await mesh.submit(p, max_tokens=5 + n % 17) for n, p in enumerate(prompts)]
        for n, stream in enumerate(streams):
            await stream.end()
            assert stream.text == expected(prompts[n], 5 + n % 17)
        await mesh.settle()


async def test_a_long_prompt_crosses_in_pieces_and_token_ranges() -> None:
    prompt = [(7 * i) % 251 for i in range(5000)]
    async with LocalMesh(max_num_batched_tokens=700, limits=Limits(borrow=False)) as mesh:
        streams = [await mesh.submit(prompt), await mesh.submit(PROMPT), await mesh.submit(prompt[:3000])]
        for stream, tokens in zip(streams, (5000, 50, 3000), strict=True):
            await stream.end()
            assert stream.text == expected(PROMPT if tokens == 50 else prompt[:tokens], 8)
            await stream.until(lambda s: s.handed_off is not None)
        await mesh.settle()


async def test_preempted_sequences_are_recomputed_in_pieces_to_the_same_text() -> None:
    prompts = [[(n * 31 + i) % 256 for i in range(60)] for n in range(4)]
    make = lambda: FakeEngine(kv_blocks=24, max_model_len=250)  # noqa: E731
    async with LocalMesh(prompt=0, token=0, mixed=1, make_engine=make, max_num_batched_tokens=32) as mesh:
        streams = [await mesh.submit(p, max_tokens=60 + n) for n, p in enumerate(prompts)]
        for n, stream in enumerate(streams):
            await stream.end()
            assert stream.text == expected(prompts[n], 60 + n)
        await mesh.settle()


async def test_a_mixed_worker_serves_alone_without_transfer() -> None:
    async with LocalMesh(prompt=0, token=0, mixed=1) as mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        assert stream.text == expected(PROMPT, 8)
        await mesh.settle()
        assert mesh.worker("mixed-0").transfers.bytes_pushed == 0


async def test_many_streams_over_many_workers() -> None:
    async with LocalMesh(prompt=2, token=2, routers=2) as mesh:
        prompts = [[(n * 31 + i) % 256 for i in range(1 + 37 * n % 300)] for n in range(32)]
        streams = [await mesh.submit(p, max_tokens=1 + n % 17) for n, p in enumerate(prompts)]
        for n, stream in enumerate(streams):
            await stream.end()
            assert stream.text == expected(prompts[n], 1 + n % 17)
        await mesh.settle()
        pushed = [mesh.worker(f"prompt-{n}").transfers.bytes_pushed for n in range(2)]
        assert all(pushed), "both prompt workers were used"


async def test_sampling_draws_the_same_wherever_it_goes_on() -> None:
    draw = Draw(temperature=1.0, top_k=0, top_p=1.0, seed=42, choice=0, position=0)
    want = expected(PROMPT, 8, draw)
    async with LocalMesh() as mesh:
        whole = await (await mesh.submit(PROMPT, temperature=1.0, seed=42)).end()
        assert whole.text == want
        resumed = await (await mesh.submit([*PROMPT, *want[:3]], emitted=3, attempt=2, temperature=1.0, seed=42)).end()
        assert resumed.text == want[3:]
        await mesh.settle()


async def test_a_single_token_ends_at_the_prompt_worker() -> None:
    async with LocalMesh() as mesh:
        stream = await (await mesh.submit(PROMPT, max_tokens=1)).end()
        assert stream.text == expected(PROMPT, 1)
        await mesh.settle()
        assert mesh.worker("prompt-0").transfers.bytes_pushed == 0


async def test_without_token_workers_the_prompt_worker_decodes() -> None:
    async with LocalMesh(token=0) as mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        assert stream.text == expected(PROMPT, 8)
        await mesh.settle()


async def test_a_killed_token_worker_ends_the_attempt_with_a_retryable_failure() -> None:
    async with LocalMesh() as mesh:
        stream = await mesh.submit(PROMPT, max_tokens=5000)
        await stream.until(lambda s: len(s.tokens) > 3)
        await mesh.kill_worker("token-0")
        retry = await mesh.submit([*PROMPT, *stream.text], emitted=len(stream.text), attempt=2, max_tokens=40)
        assert (await retry.end()).text or retry.failed
        await mesh.settle()
