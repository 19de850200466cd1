"""What goes wrong around a worker: each of these once lost a request, doubled it or killed the process."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from shared.broker.memory import MemoryBroker
from shared.engine.fake import FakeEngine
from shared.errors import Transient
from shared.ids import Address, EntryId, RequestId, StreamName, WorkerId
from shared.policy import handoff as h
from shared.runtime.supervise import Supervisor
from shared.wire.messages import Assigned, Failed, KvComplete, KvDamaged, Release, Reserve
from shared.wire.streams import worker_stream
from shared.wire.terms import PushMode
from shared.worker import intake
from tests.support.gates import GatedEngine
from tests.support.mesh import LocalMesh, Stream
from tests.support.pair import Pair
from tests.support.samples import submitted

PROMPT = list(range(60))


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_gateway_that_was_only_slow_gets_its_requests_back() -> None:
    async with LocalMesh() as mesh:
        stream = await mesh.submit(PROMPT, max_tokens=100_000)
        await stream.until(lambda s: len(s.tokens) > 5)
        mesh.network.freeze(mesh.gateway.address)
        await until(lambda: mesh.worker("token-0").idle)
        mesh.network.thaw(mesh.gateway.address)
        await stream.until(lambda s: s.failed is not None)
        assert stream.failed is not None and stream.failed.retryable


async def test_an_end_that_may_have_been_lost_with_the_link_is_reported() -> None:
    async with LocalMesh() as mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        intake.on_peer_lost(mesh.worker("token-0"), mesh.gateway.address)
        await stream.until(lambda s: s.failed is not None)
        assert stream.failed is not None and stream.failed.retryable


async def test_a_dead_gateway_is_told_once() -> None:
    async with LocalMesh() as mesh:
        await (await mesh.submit(PROMPT)).end()
        running = await mesh.submit(PROMPT, max_tokens=100_000)
        await running.until(lambda s: len(s.tokens) > 5)
        links = mesh.worker("token-0").links
        sent = []
        send = links.send
        links.send = lambda peer, message: (sent.append(type(message)), send(peer, message))[1]  # type: ignore[method-assign]
        mesh.network.kill(mesh.gateway.address)
        await until(lambda: mesh.worker("token-0").idle)
        await asyncio.sleep(0.1)
        assert sent.count(Failed) == 2, "one that ran, one that had just ended"


class ForgetfulBroker(MemoryBroker):
    """Its answer to the first `discard` is lost."""

    lost = 0

    async def discard(self, stream: StreamName, entry_ids: Sequence[EntryId]) -> None:
        if self.lost == 0:
            self.lost += 1
            raise Transient("no answer")
        await super().discard(stream, entry_ids)


async def test_a_prompt_is_not_lost_between_reading_and_deleting_it() -> None:
    mesh = LocalMesh()
    mesh.broker = ForgetfulBroker()
    async with mesh:
        assert len((await (await mesh.submit(PROMPT)).end()).text) == 8
        await (await mesh.submit(PROMPT)).end()
        await mesh.settle()
        mine = worker_stream(WorkerId("prompt-0"))
        await asyncio.sleep(0.05)
        assert await mesh.broker.tail({mine: EntryId("0-0")}, wait_s=0) == [], "deleted in the end"


async def test_blocks_freed_by_a_cancelled_hand_off_wake_a_preempted_sequence() -> None:
    engines = iter([GatedEngine(stop_at=1)])
    async with LocalMesh(
        token=1, make_engine=lambda: next(engines, FakeEngine(kv_blocks=12, max_model_len=190))
    ) as mesh:
        worker = mesh.worker("token-0")
        hand_off = await mesh.submit(list(range(150)))
        await until(lambda: worker.blocks.used_blocks >= 10)
        local = submitted("local", tokens=40, reply_to=mesh.gateway.address)
        stream = mesh.streams[local.key] = Stream(local)
        assigned = Assigned(
            request=local, prompt_worker=WorkerId("token-0"), token_worker=WorkerId("token-0"),
            token_address=Address("token-0"),
        )  # fmt: skip
        intake.on_assigned(worker, assigned, 0.0)
        await asyncio.sleep(0.05)
        assert worker.batcher.waiting, "no room beside the hand-off"
        mesh.cancel(hand_off, "token-0")
        await stream.end(1.0)
        for member in mesh.members.values():
            engine = member.worker.engine_thread.engine
            if isinstance(engine, GatedEngine):
                engine.release()


def reserve(transfer_id: int, name: str = "bad") -> Reserve:
    request = submitted(name, tokens=20)
    return Reserve(request=request, transfer_id=transfer_id, kv_address=b"nowhere", mode=PushMode.LAYERWISE)


@pytest.mark.parametrize("transfer_id", [0, -1, 1 << 48])
async def test_an_impossible_transfer_id_is_refused(transfer_id: int) -> None:
    async with LocalMesh() as mesh:
        worker = mesh.worker("token-0")
        intake.on_reserve(worker, Address("prompt-0"), reserve(transfer_id))
        assert worker.idle and worker.blocks.used_blocks == 0
        assert len((await (await mesh.submit(PROMPT)).end()).text) == 8


async def test_a_transfer_id_in_use_is_refused() -> None:
    async with LocalMesh() as mesh:
        worker = mesh.worker("token-0")
        intake.on_reserve(worker, Address("prompt-0"), reserve(5, "one"))
        intake.on_reserve(worker, Address("prompt-0"), reserve(5, "two"))
        assert [r.request_id for r in worker.token_side.requests()] == ["one"]
        worker.cancel_attempts(RequestId("one"), 1)


async def test_a_cancel_of_an_absurd_attempt_takes_no_time() -> None:
    async with LocalMesh() as mesh:
        worker = mesh.worker("token-0")
        worker.cancel_attempts(RequestId("r"), 10**15)
        assert len((await (await mesh.submit(PROMPT, name="other")).end()).text) == 8


async def test_slices_that_do_not_exist_are_not_pushed_again() -> None:
    async with LocalMesh() as mesh:
        mesh.fabric.delay_s = 0.05
        stream = await mesh.submit(PROMPT)
        await stream.until(lambda s: len(s.tokens) >= 1)
        side = mesh.worker("prompt-0").prompt_side
        bad = KvDamaged(request_id=stream.request.request_id, attempt=1, transfer_id=7, slices=(99,))
        assert side.handle(bad, 0.0) == []
        assert len((await stream.end()).text) == 8
        await mesh.settle()
        assert side.handle(bad, 0.0) == [], "nor filled, when the request is over"


async def test_a_lost_acknowledgement_leaves_one_decoder() -> None:
    async with LocalMesh() as mesh:
        stream = await mesh.submit(PROMPT, max_tokens=100_000)
        await stream.until(lambda s: len(s.tokens) > 5)
        worker = mesh.worker("token-0")
        release = Release(request_id=stream.request.request_id, attempt=1)
        intake.on_release(worker, Address("stranger"), release)
        assert worker.batcher.running, "only who handed it over may end it"
        intake.on_release(worker, Address("prompt-0"), release)
        await mesh.settle()


async def test_a_hand_off_that_nobody_knows_is_refused_at_once() -> None:
    async with LocalMesh() as mesh:
        complete = KvComplete(request_id=RequestId("?"), attempt=1, transfer_id=1, checksums=(), first_token=1)
        refusals = []
        feed = mesh.worker("prompt-0").feed_prompt
        mesh.worker("prompt-0").feed_prompt = lambda e: (refusals.append(e), feed(e))[1]  # type: ignore[method-assign]
        intake.on_kv_complete(mesh.worker("token-0"), Address("prompt-0"), complete)
        await until(lambda: any(type(e).__name__ == "Refused" for e in refusals))


async def test_an_older_attempt_never_follows_a_newer_one() -> None:
    async with LocalMesh() as mesh:
        newer = await mesh.submit(PROMPT, name="r", attempt=2, max_tokens=100_000)
        await newer.until(lambda s: len(s.tokens) > 3)
        older = await mesh.submit(PROMPT, name="r", attempt=1)
        await asyncio.sleep(0.05)
        assert not older.tokens
        mesh.cancel(newer)
        await mesh.settle()


async def test_an_aborted_step_is_no_measure_of_speed() -> None:
    engine = GatedEngine(stop_at=1)
    async with LocalMesh(make_engine=lambda: engine, token=0) as mesh:
        worker = mesh.worker("prompt-0")
        before = worker.fitter.fit
        stream = await mesh.submit(list(range(250)) * 8)
        await until(engine.reached.is_set)
        mesh.cancel(stream)
        await until(lambda: any(s.cancelled for s in worker.in_step()))
        engine.release()
        await mesh.settle()
        assert worker.fitter.fit == before


async def test_a_bug_in_a_callback_takes_the_process_down() -> None:
    def bug() -> None:
        raise KeyError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        async with Supervisor() as supervisor:
            supervisor.fail_on_callbacks()
            asyncio.get_running_loop().call_soon(bug)
            await asyncio.sleep(5.0)
    assert caught.group_contains(KeyError)
    asyncio.get_running_loop().set_exception_handler(None)


def test_nothing_is_filled_where_nothing_waits() -> None:
    """After a refusal or with a broken endpoint no receive is posted; what is sent then lies in the peer for ever."""
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.deliver_to_token()
    pair.post()
    pair.feed_prompt(pair.to_prompt.popleft())
    sent = dict(pair.sent)
    pair.feed_prompt(h.TransferFailed(key=request.key, transfer_id=100, reason="broken"))
    assert pair.sent == sent and pair.local == [request.key]
