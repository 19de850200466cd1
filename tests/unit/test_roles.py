"""Roles and drain by hand: what a gateway takes and passes on, what `splitmesh role` and `splitmesh drain` say."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from services.local.__main__ import run
from services.local.operate import drain, role
from shared.broker.memory import MemoryBroker
from shared.ids import EntryId, WorkerId
from shared.wire.messages import StreamMessage
from shared.wire.reports import DrainWorker, RoleChanged, SetRole
from shared.wire.streams import EVENTS, REPORTS, worker_stream
from shared.wire.terms import Role, State
from tests.support.gateway import Rig, error_of, eventually, mesh
from tests.support.samples import report

START = EntryId("0-0")


async def messages(broker: MemoryBroker, stream: Any) -> list[StreamMessage]:
    return [entry.message for entry in await broker.tail({stream: START}, wait_s=0)]


def changed(worker: str, was: Role, now: Role, reason: str = "test") -> RoleChanged:
    return RoleChanged(worker_id=WorkerId(worker), was=was, role=now, reason=reason)


# ---- the gateway ----------------------------------------------------------------------------------------------------


async def post(rig: Rig, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with rig.post(f"/mesh/workers/{path}", body, **headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("name", ["prompt.1", "prompt"])
async def test_an_operators_role_goes_to_the_workers_own_stream(name: str) -> None:
    async with mesh() as rig:
        assert await post(rig, f"{name}/role", {"role": "token"}) == (202, {"worker": "prompt.1", "role": "token"})
        assert (await post(rig, f"{name}/role", {"role": "auto"}))[0] == 202
        first, second = await messages(rig.broker, worker_stream(WorkerId("prompt.1")))
        assert isinstance(first, SetRole) and (first.role, first.fence) == (Role.TOKEN, None)
        assert isinstance(second, SetRole) and (second.role, second.fence) == (None, None)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nobody/role", {"role": "token"}, 404, "no worker nobody; here are prompt.1, token.1"),
        ("prompt.2/drain", {}, 404, "no worker prompt.2; here are prompt.1, token.1"),
        ("prompt/role", {"role": "boss"}, 400, "role: Input should be 'prompt', 'token', 'mixed' or 'auto'"),
        ("prompt/role", {}, 400, "role: Field required"),
        ("prompt/drain", {"force": "yes"}, 400, "force: Input should be a valid boolean"),
    ],
)
async def test_what_cannot_be_meant_is_refused(path: str, body: Any, status: int, message: str) -> None:
    async with mesh() as rig:
        answered, content = await post(rig, path, body)
        assert (answered, error_of(content)["message"]) == (status, message)
        assert await messages(rig.broker, worker_stream(WorkerId("prompt.1"))) == []


async def test_a_name_of_two_workers_needs_the_full_id_and_the_lost_do_not_count() -> None:
    async with mesh() as rig:
        await rig.broker.publish(REPORTS, report("prompt.2"))
        await eventually(lambda: _sees(rig, "prompt.2"))
        status, content = await post(rig, "prompt/role", {"role": "token"})
        assert (status, error_of(content)["code"]) == (409, "worker_ambiguous")
        assert "prompt.1, prompt.2" in error_of(content)["message"]
        assert (await post(rig, "prompt.2/role", {"role": "token"}))[0] == 202
        await rig.broker.publish(REPORTS, report("prompt.2", state=State.LOST))
        await eventually(lambda: _sees(rig, "prompt.2", State.LOST))
        assert (await post(rig, "prompt/role", {"role": "token"}))[1]["worker"] == "prompt.1"


async def test_drain_spares_the_last_worker_unless_forced() -> None:
    async with mesh() as rig:
        assert await post(rig, "prompt/drain", {}) == (202, {"worker": "prompt.1"})
        assert await messages(rig.broker, worker_stream(WorkerId("prompt.1"))) == [
            DrainWorker(worker_id=WorkerId("prompt.1"))
        ]
        await rig.report(Role.PROMPT, "prompt", state=State.DRAINING)
        await eventually(lambda: _sees(rig, "prompt.1", State.DRAINING))
        status, content = await post(rig, "token/drain", {})
        assert (status, error_of(content)["code"]) == (409, "last_worker")
        assert (await post(rig, "token/drain", {"force": True}))[0] == 202


async def test_operating_needs_the_key_and_json() -> None:
    async with mesh(api_key=("k",)) as rig:
        assert (await post(rig, "prompt/drain", {}))[0] == 401
        key = {"Authorization": "Bearer k"}
        async with rig.http.post(f"{rig.url}/mesh/workers/prompt/drain", data=b"{}", headers=key) as response:
            assert response.status == 415, "what a web page could send unasked"
        assert (await post(rig, "prompt/drain", {}, **key))[0] == 202


async def test_a_silent_broker_is_said_to_be_silent() -> None:
    async with mesh() as rig:
        rig.broker.silent = True
        status, content = await post(rig, "prompt/role", {"role": "token"})
        assert (status, error_of(content)["code"]) == (503, "broker_silent")
        rig.broker.silent = False


async def test_role_changes_are_shown_latest_first_and_counted() -> None:
    async with mesh() as rig:
        for number in range(60):
            now = Role.TOKEN if number % 2 == 0 else Role.PROMPT
            was = Role.PROMPT if number % 2 == 0 else Role.TOKEN
            await rig.broker.publish(EVENTS, changed("w", was, now, f"reason {number}"))

        async def shown() -> Any:
            async with rig.http.get(rig.url + "/mesh") as response:
                return (await response.json())["role_changes"]

        await eventually(lambda: _holds(shown, lambda found: found and found[0]["reason"] == "reason 59"))
        found = await shown()
        assert len(found) == 50 and found[-1]["reason"] == "reason 10"
        age_s = found[0].pop("age_s")
        assert 0 <= age_s < 5
        assert found[0] == {"worker": "w", "was": "token", "role": "prompt", "reason": "reason 59"}
        async with rig.http.get(rig.url + "/metrics") as response:
            text = await response.text()
        assert 'splitmesh_role_changes_total{from="prompt",to="token"} 30.0' in text


async def _holds(read: Callable[[], Any], condition: Callable[[Any], object]) -> bool:
    return bool(condition(await read()))


async def _sees(rig: Rig, worker: str, state: State = State.READY) -> bool:
    async with rig.http.get(rig.url + "/mesh") as response:
        workers = (await response.json())["workers"]
    return (worker, state.value) in [(one["id"], one["state"]) for one in workers]


# ---- the command line -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def obedient(rig: Rig, name: str) -> AsyncIterator[None]:
    """A worker that reports what it is told to be; told to leave, it shows that it drains before it goes."""

    async def obey() -> None:
        own, after = report(f"{name}.1", Role(name)), START
        while True:
            for entry in await rig.broker.tail({worker_stream(own.worker_id): after}, wait_s=1.0):
                after = entry.entry_id
                match entry.message:
                    case SetRole() as order:
                        own = replace(own, role=order.role or own.role, role_pinned=order.role is not None)
                        await rig.broker.publish(REPORTS, own)
                    case DrainWorker():
                        await rig.broker.publish(REPORTS, replace(own, state=State.DRAINING, running=3))
                        await asyncio.sleep(0.4)
                        await rig.broker.publish(REPORTS, replace(own, state=State.LOST))
                    case _:
                        raise AssertionError(entry.message)

    task = asyncio.create_task(obey())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def said(command: Callable[..., int], *arguments: str) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    assert await asyncio.to_thread(command, arguments, console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


async def test_splitmesh_role_waits_until_it_is_so_and_says_so() -> None:
    async with mesh() as rig, obedient(rig, "prompt"):
        (line,) = await said(role, "prompt", "token", "--url", rig.url)
        assert line.startswith("prompt.1: prompt → token within 0.") and line.endswith(
            "work in flight stays where it is"
        )
        (line,) = await said(role, "prompt.1", "token", "--url", rig.url)
        assert line == "prompt.1 was token already; the pool manager leaves it so"
        (line,) = await said(role, "prompt", "auto", "--url", rig.url)
        assert line == "prompt.1 stays token until the pool manager moves it"


async def test_splitmesh_drain_waits_until_the_worker_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_API_KEY", "k,l")
    async with mesh(api_key=("k",)) as rig, obedient(rig, "token"):
        lines = await said(drain, "token", "--url", rig.url)
    assert lines[0].startswith("draining token.1: ")
    assert lines[-1].startswith("token.1 has left after 0.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["role", "nobody", "token"], "no worker nobody; here are prompt.1, token.1"),
        (["drain", "a worker/with signs"], "no worker a worker/with signs; here are"),
        (["role", "prompt", "boss"], "argument role: invalid choice: 'boss'"),
        (["drain"], "the following arguments are required: worker; see splitmesh drain --help"),
    ],
)
async def test_what_is_wrong_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with mesh() as rig:
        assert await asyncio.to_thread(run, [*arguments, "--url", rig.url]) == 2
    heard = capsys.readouterr().err
    assert heard.startswith(f"splitmesh: {complaint}") and heard.count("\n") == 1
