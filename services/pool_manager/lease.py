"""One process's hold on a lease: it never believes to have it for longer than the broker does."""

import structlog

from shared.broker.port import Broker
from shared.clock import Clock
from shared.errors import Transient

log = structlog.get_logger()

TTL_S = 3.0
MARGIN_S = 0.5  # clocks differ in speed, and a message takes its time


class Lease:
    def __init__(self, name: str, holder: str, broker: Broker, clock: Clock) -> None:
        self._name, self._holder = name, holder
        self._broker, self._clock = broker, clock
        self._number: int | None = None
        self._until = float("-inf")

    def fence(self) -> int | None:
        """The fencing number while the lease is held; None otherwise."""
        return self._number if self._clock.now() < self._until - MARGIN_S else None

    async def renew(self) -> None:
        """Take it or keep it, if possible. A broker that does not answer takes nothing away before its time."""
        asked_at = self._clock.now()
        try:
            number = await self._broker.lease(self._name, self._holder, TTL_S)
        except Transient as error:
            log.debug("lease not renewed", reason=str(error))
            return
        if number != self._number:
            log.info("active" if number else "standing by", lease=self._name, fence=number)
        self._number, self._until = number, asked_at + TTL_S

    async def give_up(self) -> None:
        if self.fence() is None:
            return
        self._number = None
        try:
            await self._broker.lease(self._name, self._holder, 0.0)
        except Transient as error:
            log.debug("lease not given up", reason=str(error))
