"""Which attempts are over for good, known or not yet seen: they are refused whenever they come."""

from collections import OrderedDict

from shared.ids import Attempt, RequestId

REMEMBERED = 10_000


class Fence:
    """Per request the newest attempt that is over; the oldest requests are forgotten."""

    def __init__(self) -> None:
        self._over: OrderedDict[RequestId, int] = OrderedDict()

    def close(self, request_id: RequestId, attempt: int) -> None:
        """This attempt and all older ones are over."""
        self._over[request_id] = max(attempt, self._over.get(request_id, 0))
        self._over.move_to_end(request_id)
        if len(self._over) > REMEMBERED:
            self._over.popitem(last=False)

    def refuses(self, key: Attempt) -> bool:
        request_id, attempt = key
        return attempt <= self._over.get(request_id, 0)
