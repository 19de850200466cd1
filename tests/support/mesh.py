"""A whole mesh in one process: real services over the memory adapters and the fake engine."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from services.pool_manager.service import PoolManager
from services.router.service import Router
from shared.broker.memory import MemoryBroker
from shared.clock import SystemClock
from shared.engine.fake import FakeEngine
from shared.engine.port import Engine
from shared.ids import Address, RequestId, ServiceId, WorkerId
from shared.link.memory import MemoryLinks, MemoryNetwork
from shared.link.port import Received
from shared.policy.replay import Opening
from shared.policy.routing import DEFAULT_LIMITS, Limits
from shared.runtime.journal import Note, not_noted
from shared.runtime.supervise import Supervisor
from shared.transport.memory import MemoryFabric
from shared.transport.port import Transport
from shared.wire.messages import Cancel, Failed, HandedOff, Submitted, Tokens
from shared.wire.streams import SUBMITTED
from shared.wire.terms import Finish, Role, Sampling
from shared.worker import service
from shared.worker.engine_thread import EngineThread
from shared.worker.options import WorkerOptions
from shared.worker.worker import Worker

CLOCK = SystemClock()


@dataclass(slots=True)
class Stream:
    """What a client of the gateway stand-in got of one request."""

    request: Submitted
    tokens: dict[int, int] = field(default_factory=dict)
    finish: Finish | None = None
    failed: Failed | None = None
    handed_off: HandedOff | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> list[int]:
        """Tokens in order of position, as far as there is no gap."""
        start = self.request.emitted
        return [self.tokens[p] for p in range(start, start + len(self.tokens)) if p in self.tokens]

    async def until(self, condition: Callable[["Stream"], bool], timeout_s: float = 10.0) -> "Stream":
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()
        return self

    async def end(self, timeout_s: float = 10.0) -> "Stream":
        return await self.until(lambda s: s.finish is not None or s.failed is not None, timeout_s)


@dataclass(slots=True)
class Member:
    """One worker with its own supervisor, so that it can be stopped or killed alone."""

    worker: Worker
    supervisor: Supervisor
    task: "asyncio.Task[None]"


class LocalMesh:
    """`async with LocalMesh(prompt=1, token=1) as mesh: stream = await mesh.submit([1, 2, 3])`."""

    def __init__(
        self,
        *,
        prompt: int = 1,
        token: int = 1,
        mixed: int = 0,
        routers: int = 1,
        make_engine: Callable[[], Engine] = FakeEngine,
        push_threshold: int = 0,
        max_num_batched_tokens: int = 2048,
        limits: Limits = DEFAULT_LIMITS,
        open_transport: Callable[[], Awaitable[Transport]] | None = None,
        note_of: Callable[[Opening], Note] = lambda opening: not_noted,
        on_worker: Callable[[Worker], object] = lambda worker: None,
    ) -> None:
        self.broker = MemoryBroker()
        self.network = MemoryNetwork()
        self.fabric = MemoryFabric()
        self.members: dict[str, Member] = {}
        self.streams: dict[tuple[RequestId, int], Stream] = {}
        self._counts = {Role.PROMPT: prompt, Role.TOKEN: token, Role.MIXED: mixed}
        self._routers = routers
        self._make_engine = make_engine
        self._push_threshold = push_threshold
        self._max_num_batched_tokens = max_num_batched_tokens
        self._limits = limits
        self._open_transport = open_transport or self.fabric.open
        self._note_of = note_of
        self._on_worker = on_worker
        self._supervisor = Supervisor()
        self.gateway: MemoryLinks = self.network.links("gateway")

    async def __aenter__(self) -> "LocalMesh":
        self._callback_errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self._callback_errors.append(context))
        await self._supervisor.__aenter__()
        for number in range(self._routers):
            router_id = ServiceId(f"router-{number}")
            note = self._note_of(Opening(service="router", service_id=router_id, limits=self._limits))
            router = Router(router_id=router_id, broker=self.broker, clock=CLOCK, limits=self._limits, note=note)
            self._supervisor.spawn(router.run(self._supervisor), name=f"router-{number}")
        manager_id = ServiceId("pool-manager-0")
        note = self._note_of(Opening(service="pool_manager", service_id=manager_id))
        manager = PoolManager(manager_id=manager_id, broker=self.broker, clock=CLOCK, note=note)
        self._supervisor.spawn(manager.run(self._supervisor), name="pool-manager")
        for role, count in self._counts.items():
            for number in range(count):
                await self.start_worker(f"{role.value}-{number}", role)
        self._supervisor.spawn(self._read_frames(), name="gateway")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members.values():
            member.supervisor.stopping.set()
        await asyncio.gather(*(m.task for m in self.members.values()), return_exceptions=kind is not None)
        self._supervisor.stopping.set()
        await self._supervisor.__aexit__(kind, error, trace)
        assert kind is not None or not self._callback_errors, self._callback_errors

    async def start_worker(self, name: str, role: Role) -> Worker:
        born: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._live(name, role, born), name=name)
        await asyncio.wait([born, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        self.members[name] = await born
        return self.members[name].worker

    async def _live(self, name: str, role: Role, born: "asyncio.Future[Member]") -> None:
        async with Supervisor() as supervisor:
            worker = Worker(
                options=WorkerOptions(
                    worker_id=WorkerId(name),
                    service="worker",
                    role=role,
                    model="bytes",
                    pid=0,
                    push_threshold=self._push_threshold,
                    max_num_batched_tokens=self._max_num_batched_tokens,
                    drain_s=1.0,
                ),
                engine_thread=EngineThread(self._make_engine()),
                broker=self.broker,
                links=self.network.links(name),
                transport=await self._open_transport(),
                clock=CLOCK,
                spawn=supervisor.spawn,
            )
            self._on_worker(worker)
            me = asyncio.current_task()
            assert me is not None
            born.set_result(Member(worker, supervisor, me))
            await service.run(worker, supervisor)

    async def kill_worker(self, name: str) -> None:
        """As SIGKILL would: no goodbye, links and transfers break."""
        member = self.members.pop(name)
        self.network.kill(Address(name))
        self.fabric.kill(member.worker.transport.address)
        member.task.cancel()
        await asyncio.gather(member.task, return_exceptions=True)

    def worker(self, name: str) -> Worker:
        return self.members[name].worker

    async def submit(
        self,
        token_ids: Sequence[int],
        *,
        name: str | None = None,
        attempt: int = 1,
        emitted: int = 0,
        max_tokens: int = 8,
        **sampling: float | int | bool,
    ) -> Stream:
        request = Submitted(
            request_id=RequestId(name or secrets.token_hex(4)),
            attempt=attempt,
            token_ids=tuple(token_ids),
            emitted=emitted,
            sampling=Sampling(max_tokens=max_tokens, **{"temperature": 0.0, "ignore_eos": True, **sampling}),  # type: ignore[arg-type]
            time_left_s=30.0,
            waited_s=0.0,
            gateway_id=ServiceId("gateway"),
            reply_to=self.gateway.address,
            model="bytes",
        )
        stream = self.streams[request.key] = Stream(request)
        await self.broker.publish(SUBMITTED, request)
        return stream

    def cancel(self, stream: Stream, *workers: str) -> None:
        request = stream.request
        for worker in workers or tuple(self.members):
            self.gateway.send(Address(worker), Cancel(request_id=request.request_id, attempt=request.attempt))

    async def _read_frames(self) -> None:
        while True:
            event = await self.gateway.receive()
            if isinstance(event, Received):
                match event.message:
                    case Tokens(chunks=chunks):
                        for chunk in chunks:
                            stream = self.streams[chunk.request_id, chunk.attempt]
                            for offset, token in enumerate(chunk.token_ids):
                                known = stream.tokens.setdefault(chunk.position + offset, token)
                                assert known == token, "two workers disagree about a token"
                            stream.finish = chunk.finish or stream.finish
                            stream.changed.set()
                    case Failed() as failed:
                        self.streams[failed.request_id, failed.attempt].failed = failed
                        self.streams[failed.request_id, failed.attempt].changed.set()
                    case HandedOff() as done:
                        self.streams[done.request_id, done.attempt].handed_off = done
                        self.streams[done.request_id, done.attempt].changed.set()
                    case _:
                        raise AssertionError(f"unexpected frame {event.message}")

    async def settle(self, timeout_s: float = 2.0) -> None:
        """Wait until no worker holds anything, and prove that nothing leaked."""
        async with asyncio.timeout(timeout_s):
            while not all(self._empty(m.worker) for m in self.members.values()):
                await asyncio.sleep(0.005)
        for member in self.members.values():
            member.worker.check()
            assert member.worker.blocks.used_blocks == 0
            assert not len(member.worker.coming), "a request that came is still expected"

    def _empty(self, worker: Worker) -> bool:
        return worker.idle and not len(worker.prompt_side)
