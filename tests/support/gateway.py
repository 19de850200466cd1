"""A gateway over real HTTP, with memory broker and links and a scripted router and workers behind it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from services.gateway.service import gateway
from shared.broker.memory import MemoryBroker
from shared.clock import SystemClock
from shared.errors import Transient
from shared.ids import Address, EntryId, ServiceId, StreamName, WorkerId
from shared.link.memory import MemoryNetwork
from shared.link.port import Received
from shared.models.tokenizer import ByteTokenizer
from shared.runtime.config import Settings
from shared.runtime.supervise import Supervisor
from shared.wire.messages import Chunk, LinkMessage, Placed, StageTimes, StreamMessage, Submitted, Tokens
from shared.wire.reports import ServiceReport
from shared.wire.streams import PLACEMENTS, REPORTS, SUBMITTED
from shared.wire.terms import Finish, Role, State
from tests.support.samples import report as worker_report

EOS = ByteTokenizer.eos_id
CONTEXT = 200


class FlakyBroker(MemoryBroker):
    """A broker that can be made silent."""

    silent = False

    async def publish(self, stream: StreamName, message: StreamMessage) -> EntryId:
        if self.silent:
            raise Transient("no answer")
        return await super().publish(stream, message)


class Rig:
    """The neighbours of a gateway, played by hand: `submitted` holds what it asked for, `say` answers."""

    def __init__(self, port: int, broker: FlakyBroker, network: MemoryNetwork, http: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.broker = broker
        self.network = network
        self.http = http
        self.workers = {name: network.links(name) for name in ("prompt", "token", "spare")}
        self._seen = EntryId("0-0")

    async def submitted(self) -> Submitted:
        (entry, *_) = await self.broker.tail({SUBMITTED: self._seen}, wait_s=5.0, limit=1)
        self._seen = entry.entry_id
        assert isinstance(entry.message, Submitted)
        return entry.message

    async def place(self, request: Submitted, prompt: str = "prompt", token: str = "token") -> None:
        message = Placed(
            request_id=request.request_id, attempt=request.attempt, prompt_worker=WorkerId(f"{prompt}.1"),
            token_worker=WorkerId(f"{token}.1"), prompt_address=Address(prompt), token_address=Address(token),
            prompt_tokens=request.prompt_tokens, output_tokens=request.tokens_left, gateway_id=request.gateway_id,
            time_left_s=request.time_left_s,
        )  # fmt: skip
        await self.broker.publish(PLACEMENTS, message)

    def say(
        self, who: str, request: Submitted, position: int, tokens: bytes | list[int], finish: Finish | None = None
    ) -> None:
        stage = StageTimes(worker_id=WorkerId(f"{who}.1"), queue_s=0.01, prefill_s=0.02, decode_s=0.03)
        chunk = Chunk(
            request_id=request.request_id, attempt=request.attempt, position=position, token_ids=tuple(tokens),
            finish=finish, stage=stage if finish or not position else None,
        )  # fmt: skip
        self.send(who, request, Tokens(chunks=(chunk,)))

    def send(self, who: str, request: Submitted, message: LinkMessage) -> None:
        self.workers[who].send(request.reply_to, message)

    async def heard(self, who: str) -> LinkMessage:
        async with asyncio.timeout(5):
            event = await self.workers[who].receive()
        assert isinstance(event, Received)
        return event.message

    async def answer(self, output: bytes, finish: Finish = Finish.STOP) -> Submitted:
        """Serve the next request to its end: first token from the prompt worker, the rest from the token worker."""
        request = await self.submitted()
        await self.place(request)
        tokens = [*output, *([EOS] if finish is Finish.STOP else [])]
        for position, token in enumerate(tokens):
            last = finish if position == len(tokens) - 1 else None
            self.say("token" if position else "prompt", request, position, [token], last)
        return request

    async def report(self, role: Role, name: str, **fields: Any) -> None:
        shape = {"max_model_len": CONTEXT, "kv_blocks_total": 64, "kv_blocks_used": 16, "transport_bandwidth_gb_s": 1.5}
        service, address = f"{role.value}_worker", Address(name)
        message = worker_report(f"{name}.1", role, service=service, link_address=address, **shape | fields)
        await self.broker.publish(REPORTS, message)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.http.post(self.url + path, json=body, headers=headers)


@asynccontextmanager
async def mesh(*, ready: bool = True, **options: Any) -> AsyncIterator[Rig]:
    broker, network = FlakyBroker(), MemoryNetwork()
    settings = Settings(port=0, **options)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with Supervisor() as supervisor, aiohttp.ClientSession() as http:
        running = supervisor.spawn(
            gateway(
                settings, supervisor, gateway_id=ServiceId("gateway-0.aa"), model="bytes", broker=broker,
                links=network.links("gateway"), tokenizer=ByteTokenizer(), clock=SystemClock(),
                listening=port.set_result,
            ),
            name="gateway",
        )  # fmt: skip
        rig = Rig(await port, broker, network, http)
        if ready:
            router = ServiceReport(service_id=ServiceId("router-0.aa"), service="router", pid=1, state=State.READY)
            await broker.publish(REPORTS, router)
            await rig.report(Role.PROMPT, "prompt")
            await rig.report(Role.TOKEN, "token")
            await eventually(lambda: is_status(rig, "/ready", 200))
        yield rig
        supervisor.stopping.set()
        await running


async def is_status(rig: Rig, path: str, status: int) -> bool:
    async with rig.http.get(rig.url + path) as response:
        return response.status == status


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():
            await asyncio.sleep(0.01)


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The frames of a whole stream; JSON except for the last word."""
    raw = (await response.read()).decode()
    frames = raw.split("\n\n")
    assert frames[-1] == "" and all(frame.startswith("data: ") for frame in frames[:-1])
    return [f if f == "[DONE]" else json.loads(f) for f in (frame.removeprefix("data: ") for frame in frames[:-1])]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "bytes", "prompt": "hi", "max_tokens": 50, "temperature": 0, **fields}


def error_of(content: Any) -> dict[str, Any]:
    error: dict[str, Any] = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- answers --------------------------------------------------------------------------------------------------------


async def status_and_error(rig: Rig, fields: Any, path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
    async with rig.post(path, fields) as response:
        return response.status, error_of(await response.json())


async def read_all(rig: Rig, fields: dict[str, Any]) -> list[Any]:
    async with rig.post("/v1/completions", fields) as response:
        return await events(response)


async def heard_by_gateway(rig: Rig, request: Submitted, stage: str) -> None:
    async def holds() -> bool:
        async with rig.http.get(f"{rig.url}/mesh/requests/{request.request_id}") as response:
            return stage in [one["stage"] for one in (await response.json())["stages"]]

    await eventually(holds)
