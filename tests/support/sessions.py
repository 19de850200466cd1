"""Events for the session decider, and ways to read its commands."""

from typing import Any

from services.gateway import events as ev
from services.gateway.events import Command, Identity, Send, Submit
from services.gateway.sessions import Sessions
from shared.ids import Address, RequestId, ServiceId, WorkerId
from shared.link.port import Received
from shared.wire.messages import Cancel, Chunk, Failed, HandedOff, Placed, Submitted, Tokens
from shared.wire.terms import Finish, PushMode, Sampling, State

GATEWAY = ServiceId("gateway-0.aa")
R = RequestId("r1")
P, T, P2, T2 = (Address(f"{name}:1") for name in ("p", "t", "p2", "t2"))
OUTPUT = tuple(range(100, 130))  # what every worker would generate, by position


def new() -> Sessions:
    return Sessions(Identity(gateway_id=GATEWAY, address=Address("gateway:1")))


def opened(max_tokens: int = 8, time_left_s: float = 60.0) -> ev.Opened:
    sampling = Sampling(max_tokens=max_tokens)
    return ev.Opened(request_id=R, prompt=(1, 2, 3), sampling=sampling, time_left_s=time_left_s, model="m")


def placed(attempt: int = 1, prompt: Address = P, token: Address = T, gateway: ServiceId = GATEWAY) -> Placed:
    return Placed(
        request_id=R, attempt=attempt, prompt_worker=WorkerId(f"w-{prompt}"), token_worker=WorkerId(f"w-{token}"),
        prompt_address=prompt, token_address=token, prompt_tokens=3, output_tokens=8, gateway_id=gateway,
        time_left_s=1.0,
    )  # fmt: skip


def chunk(
    position: int, count: int = 1, *, peer: Address = T, attempt: int = 1, finish: Finish | None = None
) -> Received:
    tokens = OUTPUT[position : position + count]
    one = Chunk(request_id=R, attempt=attempt, position=position, token_ids=tokens, finish=finish)
    return Received(peer=peer, message=Tokens(chunks=(one,)))


def heard(worker_id: WorkerId, at: float) -> ev.WorkerHeard:
    return ev.WorkerHeard(worker_id=worker_id, state=State.READY, at=at)


def handed_off(attempt: int = 1) -> Received:
    message = HandedOff(
        request_id=R, attempt=attempt, mode=PushMode.LAYERWISE, transport="ucx", kv_bytes=1, transfer_s=0.1,
        exposed_s=0.0, resent_slices=0,
    )  # fmt: skip
    return Received(peer=P, message=message)


def failed(peer: Address, *, retryable: bool, attempt: int = 1) -> Received:
    message = Failed(request_id=R, attempt=attempt, retryable=retryable, code="no_room", message="no room")
    return Received(peer=peer, message=message)


def run(sessions: Sessions, *events: ev.Event, now: float = 0.0) -> list[Command]:
    commands: list[Command] = []
    for event in events:
        commands = sessions.handle(event, now)
        sessions.check()
    return commands


def only(commands: list[Command], kind: type) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


def cancelled(commands: list[Command]) -> set[tuple[Address, int]]:
    sent = only(commands, Send)
    assert all(isinstance(one.message, Cancel) for one in sent)
    return {(one.peer, one.message.attempt) for one in sent}


def resubmitted(commands: list[Command]) -> Submitted:
    (submit,) = only(commands, Submit)
    message: Submitted = submit.message
    return message
