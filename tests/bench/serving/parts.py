"""The parts of a turn: what is asked of one server while it has the machine to itself.

Prompts are drawn anew for every request (the same for every server in the same round), lengths are forced, answers
greedy and streamed.
"""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from loadgen.client.ask import Asked, ask
from loadgen.client.prompts import Prompts
from loadgen.client.server import Server
from loadgen.record import Record
from loadgen.traces.trace import Request
from shared.clock import SystemClock
from tests.bench.serving.figures import Plan, Taken

DEADLINE_S = 300.0
UNDER_WAY_TOKENS, UNDER_WAY_S = 4, 60.0
APART_S = 1.0  # between two windows: a gap of one must not reach into the other
LAST_GAP_S = 30.0
LOOK_EVERY_S = 0.02


class Asker:
    """Asks one server; `seed` gives the prompts."""

    def __init__(self, session: aiohttp.ClientSession, server: Server, seed: int) -> None:
        self._session, self._server = session, server
        self._prompts, self._number = Prompts(server, seed), 0
        self.now = SystemClock().now

    def drawn(self, prompt_tokens: int, output_tokens: int) -> tuple[Record, bytes]:
        """A request that waits to be sent."""
        number, self._number = self._number, self._number + 1
        request = Request(at_s=0.0, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        body = self._prompts.body(self._prompts.symbols(number, request), output_tokens)
        record = Record(index=number, prompt_tokens=prompt_tokens, output_tokens=output_tokens, due_s=0.0)
        return record, body

    async def send(self, record: Record, body: bytes) -> Record:
        """Returns when it has ended; the record is filled meanwhile."""
        record.due_s = self.now()
        await ask(self._session, self._server, body, Asked(record=record), now=self.now, deadline_s=DEADLINE_S)
        return record

    async def one(self, prompt_tokens: int, output_tokens: int) -> Record:
        return await self.send(*self.drawn(prompt_tokens, output_tokens))


async def alone(asker: Asker, plan: Plan) -> Taken:
    """One request at a time: prompts of all lengths in turn, then single streams."""
    taken = Taken()
    for _ in range(plan.prompt_times):
        for length in plan.prompts:
            taken.add(f"prompt {length}", await asker.one(length, plan.prompt_output))
    for _ in range(plan.lone_times):
        taken.add("lone", await asker.one(*plan.lone))
    return taken


async def streams(asker: Asker, plan: Plan) -> Taken:
    """Closed loops: so many users, each sends its next request when it has its answer; all start together."""
    taken = Taken()
    for users, requests in plan.crowds:
        waiting = [asker.drawn(*plan.crowd) for _ in range(requests)]
        waiting.reverse()

        async def user(group: str = f"crowd {users}", waiting: list[tuple[Record, bytes]] = waiting) -> None:
            while waiting:
                record, body = waiting.pop()
                await asker.send(taken.add(group, record), body)

        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())
    return taken


async def interference(asker: Asker, plan: Plan) -> Taken:
    """Running streams, first by themselves, then with a long prompt every so often, sent whatever became of the one
    before. They run on until the prompts have ended and each has shown the end of its last gap."""
    taken = Taken(groups={"streams": [], "prompts": []})

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_endless(asker, taken, plan)) for _ in range(plan.streams)]
        await _until(lambda: len(_going(taken, UNDER_WAY_TOKENS)) >= plan.streams, UNDER_WAY_S)
        began_s = asker.now()
        await asyncio.sleep(plan.quiet_s)
        taken.windows["quiet"] = (began_s, asker.now())
        await asyncio.sleep(APART_S)
        await _disturb(asker, taken, plan)
        ended_s = taken.windows["disturbed"][1]
        await _until(lambda: all(r.event_s[-1] > ended_s for r in _going(taken, 1)), LAST_GAP_S)
        taken.until_s = asker.now()
        for task in running:
            task.cancel()
    await asker.one(*plan.stream[:1], 1)  # the streams have left the server when this has its turn
    _note_silence(taken, plan)
    return taken


async def _endless(asker: Asker, taken: Taken, plan: Plan) -> None:
    """One stream after the other, until one fails."""
    while True:
        record, body = asker.drawn(*plan.stream)
        await asker.send(taken.add("streams", record), body)
        if record.error:
            return


async def _disturb(asker: Asker, taken: Taken, plan: Plan) -> None:
    waiting = [asker.drawn(plan.long_prompt, 1) for _ in range(round(plan.disturbed_s / plan.every_s))]
    began_s = asker.now()
    async with asyncio.TaskGroup() as group:
        for number, (record, body) in enumerate(waiting):
            await asyncio.sleep(max(0.0, began_s + number * plan.every_s - asker.now()))
            group.create_task(asker.send(taken.add("prompts", record), body))
        await asyncio.sleep(max(0.0, began_s + plan.disturbed_s - asker.now()))
        taken.windows["disturbed"] = (began_s, asker.now())


def _going(taken: Taken, events: int) -> list[Record]:
    """Streams that have so many events and no end."""
    return [r for r in taken.groups["streams"] if r.done_s is None and r.error is None and len(r.event_s) >= events]


def _note_silence(taken: Taken, plan: Plan) -> None:
    """Streams that never ran with the others are a fault, not those that had just begun anew when we stopped them."""
    silent = [record for record in taken.groups["streams"] if not record.event_s and record.error is None]
    ran = len(taken.groups["streams"]) - len(silent)
    for record in silent[: max(0, plan.streams - ran)]:
        record.error = "a stream got no token while the others ran"


async def _until(holds: Callable[[], bool], patience_s: float) -> None:
    """Until it holds, or the time is up."""
    clock = SystemClock()
    end_s = clock.now() + patience_s
    while not holds() and clock.now() < end_s:
        await asyncio.sleep(LOOK_EVERY_S)


Part = Callable[[Asker, Plan], Awaitable[Taken]]
PARTS: dict[str, Part] = {"alone": alone, "streams": streams, "interference": interference}
