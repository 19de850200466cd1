"""A whole mesh in one process, with everything that goes wrong: all that its deciders said, fresh ones say again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest

from services.gateway import events as ev
from services.gateway.events import Identity
from services.gateway.service import gateway
from services.gateway.sessions import Sessions
from shared.engine.fake import FakeEngine
from shared.ids import Address, ServiceId
from shared.link.port import Lost, Received
from shared.models.tokenizer import ByteTokenizer
from shared.policy import handoff as h
from shared.policy.replay import Call as Decision
from shared.policy.replay import Opening, Record, Replay
from shared.policy.sequence import Sequence
from shared.runtime.config import Settings
from shared.runtime.journal import Note
from shared.wire.messages import KvAccepted, KvDamaged, Placed
from shared.wire.terms import Role
from tests.support.client import Answer, assert_all_right, stream
from tests.support.mesh import CLOCK, LocalMesh
from tests.support.recorder import Call, SessionsTape, WorkerTape, noting

IDENTITY = Identity(gateway_id=ServiceId("gateway-0"), address=Address("gateway-0"))
REQUESTS, LEAVING, TOKENS = 40, 6, 60


@dataclass(slots=True)
class Tapes:
    cluster: list[tuple[Opening, list[Record]]] = field(default_factory=list)
    workers: list[WorkerTape] = field(default_factory=list)
    sessions: SessionsTape = field(default_factory=SessionsTape)

    def note_of(self, opening: Opening) -> Note:
        self.cluster.append((opening, []))
        return noting(self.cluster[-1][1])

    @property
    def calls(self) -> list[Call]:
        return [call for tape in self.workers for call in tape.calls]


@asynccontextmanager
async def mesh_with_gateway(tapes: Tapes) -> AsyncIterator[tuple[LocalMesh, str]]:
    """Workers with little memory, so that decodes are preempted and hand-offs wait."""
    make = lambda: FakeEngine(kv_blocks=24, max_model_len=250)  # noqa: E731
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with LocalMesh(
        prompt=2, token=2, mixed=1, routers=2, make_engine=make, max_num_batched_tokens=64,
        note_of=tapes.note_of, on_worker=lambda worker: tapes.workers.append(WorkerTape(worker)),
    ) as mesh:  # fmt: skip
        serving = gateway(
            Settings(port=0), mesh._supervisor, gateway_id=IDENTITY.gateway_id, model="bytes", broker=mesh.broker,
            links=mesh.network.links(IDENTITY.address), tokenizer=ByteTokenizer(), clock=CLOCK,
            listening=port.set_result,
        )  # fmt: skip
        mesh._supervisor.spawn(serving, name="gateway-0")
        yield mesh, f"http://127.0.0.1:{await port}"


async def troubled_load(mesh: LocalMesh, url: str) -> list[Answer]:
    """KV that is damaged, clients that leave, a worker that dies with work and one that comes; answers to the rest."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        mesh.fabric.flip()
        assert_all_right([await stream(session, url, "damaged on its way", TOKENS)], TOKENS)
        prompts = [f"{number} " + "x" * (7 * number % 90) for number in range(REQUESTS)]
        leaving = [asyncio.ensure_future(stream(session, url, prompt, 140)) for prompt in prompts[:LEAVING]]
        staying = [asyncio.ensure_future(stream(session, url, prompt, TOKENS)) for prompt in prompts]
        await until(lambda: mesh.worker("token-1").batcher.running)
        for client in leaving:
            client.cancel()
        await mesh.kill_worker("token-1")
        await mesh.start_worker("token-2", Role.TOKEN)
        return await asyncio.gather(*staying)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_a_troubled_mesh_decided_is_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = Tapes()
    with monkeypatch.context() as patch:
        patch.setattr(Sessions, "handle", tapes.sessions.recording(Sessions.handle))
        async with mesh_with_gateway(tapes) as (mesh, url):
            assert_all_right(await troubled_load(mesh, url), TOKENS)
            await mesh.settle()
    everything_happened(tapes)
    for opening, records in tapes.cluster:
        replay = Replay(opening)
        assert [found for record in records if (found := replay.take(record)) is not None] == []
    for tape in tapes.workers:
        assert tape.replay(tape.calls) == []
    assert tapes.sessions.replay(IDENTITY, tapes.sessions.events) == []
    what_is_left_out_is_noticed(tapes)


def everything_happened(tapes: Tapes) -> None:
    told = {type(argument) for call in tapes.calls for argument in call.arguments}
    assert told >= {KvAccepted, KvDamaged, h.Cancelled, h.PeerGone, h.Ticked}
    assert any(sequence.sampled and not sequence.computed for call in tapes.calls for sequence in call.changed), (
        "nobody was preempted"
    )
    assert {type(event) for event, _, _ in tapes.sessions.events} >= {ev.Opened, ev.ClientLeft, Received, Lost, Placed}
    placed = [record for _, records in tapes.cluster for record in records if record.call is Decision.PLACE]
    assert len(placed) > REQUESTS + LEAVING, "what the dead worker had was placed again"


def what_is_left_out_is_noticed(tapes: Tapes) -> None:
    """A call, a sequence that its shell changed, an event."""
    tape = max(tapes.workers, key=lambda tape: len(tape.calls))
    for decider, method in (("blocks", "release"), ("batcher", "enqueue"), ("fitter", "observe")):
        number = next(n for n, call in enumerate(tape.calls) if (call.decider, call.method) == (decider, method))
        assert tape.replay([*tape.calls[:number], *tape.calls[number + 1 :]])
    number = next(n for n, call in enumerate(tape.calls) if any(shown_in(call.answer, s) for s in call.changed))
    unchanged = replace(tape.calls[number], changed=())
    assert tape.replay([*tape.calls[:number], unchanged, *tape.calls[number + 1 :]])
    events = tapes.sessions.events
    number = next(n for n, (event, _, said) in enumerate(events) if isinstance(event, Received) and said != "[]")
    assert tapes.sessions.replay(IDENTITY, [*events[:number], *events[number + 1 :]])


def shown_in(answer: str, sequence: Sequence) -> bool:
    return sequence.sampled > 1 and f"({sequence.key!r}, {sequence.computed})" in answer
