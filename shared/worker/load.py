"""What a worker counts for its reports besides what it holds: work on its way, and the lateness of its event loop."""

import asyncio
from collections import OrderedDict, deque

from shared.clock import Clock
from shared.ids import Attempt, EntryId, RequestId, WorkerId
from shared.wire.messages import Placed

REMEMBERED = 10_000


class Coming:
    """Placements that name this worker and whose request has not arrived yet: load that is on its way.

    A request may arrive before its placement is read: two streams, or a stream and a link, race.
    """

    def __init__(self, worker_id: WorkerId) -> None:
        self._worker_id = worker_id
        self._placed: dict[Attempt, tuple[float, Placed]] = {}
        self._arrived: OrderedDict[Attempt, None] = OrderedDict()
        self.covers = EntryId("0-0")

    def __len__(self) -> int:
        return len(self._placed)

    def see(self, placed: Placed, entry_id: EntryId, now: float) -> None:
        """Take note of a placement; an older attempt of the same request is not coming any more."""
        self.covers = entry_id
        for key in [k for k in self._placed if k[0] == placed.request_id and k[1] < placed.attempt]:
            del self._placed[key]
        key = placed.request_id, placed.attempt
        if self._worker_id in (placed.prompt_worker, placed.token_worker) and key not in self._arrived:
            self._placed[key] = (now + placed.time_left_s, placed)

    def arrived(self, key: Attempt) -> None:
        """The request is here, or will never be."""
        self._placed.pop(key, None)
        self._arrived[key] = None
        if len(self._arrived) > REMEMBERED:
            self._arrived.popitem(last=False)

    def cancel(self, request_id: RequestId, attempt: int) -> None:
        """This attempt and older ones will not come."""
        for key in [k for k in self._placed if k[0] == request_id and k[1] <= attempt]:
            self.arrived(key)

    def expire(self, now: float) -> None:
        self._placed = {key: (until, p) for key, (until, p) in self._placed.items() if now < until}

    def prompts(self) -> list[int]:
        """Lengths of the prompts that are to be computed here."""
        return [p.prompt_tokens for _, p in self._placed.values() if p.prompt_worker == self._worker_id]

    def decodes(self) -> list[tuple[int, int]]:
        """(prompt tokens, most output tokens) of what is to be decoded here."""
        mine = (p for _, p in self._placed.values() if p.token_worker == self._worker_id)
        return [(p.prompt_tokens, p.output_tokens) for p in mine]


class LoopLag:
    """How late the event loop wakes sleepers: P99 over the last minute, in seconds."""

    EVERY_S = 0.25

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lags: deque[float] = deque(maxlen=240)

    async def run(self) -> None:
        while True:
            before = self._clock.now()
            await asyncio.sleep(self.EVERY_S)
            self._lags.append(max(0.0, self._clock.now() - before - self.EVERY_S))

    @property
    def p99_s(self) -> float:
        return sorted(self._lags)[int(0.99 * (len(self._lags) - 1))] if self._lags else 0.0
