"""How fast bulk data crosses on this machine, by a trial between two transports on this event loop.

Both ends share one thread, which they do not in a mesh, so the bandwidth is a lower bound: two idle cores give more.
It is this machine's own interface: the way through library and kernel is measured, not the network.
"""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Literal

from shared.clock import SystemClock
from shared.errors import ConfigError, PeerLost
from shared.transport.choose import open_transport
from shared.transport.port import HINT, Done, Endpoint, Route, tag_of
from shared.wire import address as addresses
from shared.wire.terms import LinkKind

BULK_BYTES = 2 << 20
BULK_MESSAGES = 8
SMALL_BYTES = 64
ROUND_TRIPS = 50
SMALL_MESSAGES = 200
WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """bandwidth: of 2 MiB messages, several under way. latency: half a round trip of 64 bytes. per_message: the time
    that each message more takes in a row of small ones, so a transfer in n messages costs about
    latency_s + n * per_message_s + bytes / bandwidth_bytes_per_s. route: None where nobody can tell."""

    bandwidth_bytes_per_s: float
    latency_s: float
    per_message_s: float
    route: Route | None


async def measure(kind: Literal["ucx", "tcp"], *, bind: str, required: LinkKind = LinkKind.TCP) -> Speed:
    """Takes a fraction of a second. Raises ConfigError where the kind cannot work or the link is worse than `required`,
    PeerLost when nothing moves."""
    bind, secret = addresses.split(bind)[0], secrets.token_bytes(16)  # any port: the given one is the worker's
    one = await open_transport(kind, bind=bind, advertise=None, secret=secret, required=required)
    other = await open_transport(kind, bind=bind, advertise=None, secret=secret, required=required)
    try:
        async with asyncio.timeout(WITHIN_S):
            there, back = await one.endpoint(other.address), await other.endpoint(one.address)
            speed = await _try(_Course(there, back))
    except TimeoutError as error:
        raise PeerLost(f"{kind} transport", f"a trial took longer than {WITHIN_S:.0f} s") from error
    finally:
        await one.close()
        await other.close()
    if required is not LinkKind.TCP and (speed.route is None or not speed.route.kind.at_least(required)):
        via = speed.route.via if speed.route else "nobody knows what"
        reason = f"--require-transport {required}: UCX moves KV by {via} here; {HINT}"
        raise ConfigError(reason, param="require_transport")
    return speed


async def _try(course: "_Course") -> Speed:
    small, bulk = memoryview(bytearray(SMALL_BYTES)), memoryview(bytearray(BULK_BYTES))
    await course.run(bulk, 2)  # connects, and warms both buffers
    bulk_s = await course.run(bulk, BULK_MESSAGES)
    round_trips_s = 0.0
    for _ in range(ROUND_TRIPS):
        round_trips_s += await course.run(small, 1)
        course.turn()
    row_s = await course.run(small, SMALL_MESSAGES)
    return Speed(
        bandwidth_bytes_per_s=BULK_MESSAGES * BULK_BYTES / bulk_s,
        latency_s=round_trips_s / ROUND_TRIPS,
        per_message_s=row_s / SMALL_MESSAGES,
        route=course.route,
    )


class _Course:
    """Sends from one end to the other and times it."""

    def __init__(self, source: Endpoint, target: Endpoint) -> None:
        self._source, self._target = source, target
        self._transfers = 0
        self._now = SystemClock().now

    @property
    def route(self) -> Route | None:
        return self._source.route or self._target.route

    def turn(self) -> None:
        self._source, self._target = self._target, self._source

    async def run(self, data: memoryview, messages: int) -> float:
        """Seconds from the first send to the last arrival. The receives are posted before, as always."""
        loop = asyncio.get_running_loop()
        self._transfers += 1
        tags = [tag_of(self._transfers, part) for part in range(messages)]
        arrived: list[asyncio.Future[None]] = [loop.create_future() for _ in tags]
        into = [memoryview(bytearray(len(data))) for _ in tags]
        for tag, buffer, future in zip(tags, into, arrived, strict=True):
            self._target.receive(tag, buffer, _settle(future))
        sent: list[asyncio.Future[None]] = [loop.create_future() for _ in tags]
        start_s = self._now()
        for tag, future in zip(tags, sent, strict=True):
            self._source.send(tag, data, _settle(future))
        await asyncio.gather(*arrived)
        taken_s = self._now() - start_s
        await asyncio.gather(*sent)
        return taken_s


def _settle(future: "asyncio.Future[None]") -> Done:
    def done(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return done
