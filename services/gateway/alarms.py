"""When each request is to be looked at again."""

import heapq

from shared.ids import RequestId


class Alarms:
    """A request may have many alarms; one that has become pointless rings for nothing, once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, RequestId]] = []

    @property
    def next_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def wake(self, request_id: RequestId, at: float) -> None:
        heapq.heappush(self._heap, (at, request_id))

    def ring(self, now: float) -> list[RequestId]:
        """Whose time has come, each once."""
        due: dict[RequestId, None] = {}
        while self._heap and self._heap[0][0] <= now:
            due[heapq.heappop(self._heap)[1]] = None
        return list(due)

    def waiting_for(self) -> set[RequestId]:
        return {request_id for _, request_id in self._heap}
