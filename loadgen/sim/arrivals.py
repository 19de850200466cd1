"""When the requests of a trace come: at their own time, or after the one that the same user waits for."""

from collections import defaultdict
from collections.abc import Callable

from loadgen.sim.agenda import Agenda
from loadgen.traces.trace import Trace


class Arrivals:
    """`arrive` is called with the number of each request in the trace, when it is due."""

    def __init__(self, trace: Trace, agenda: Agenda, arrive: Callable[[int], None]) -> None:
        self._requests = trace.requests
        self._agenda = agenda
        self._arrive = arrive
        self._at_their_time = [i for i, request in enumerate(trace.requests) if request.after is None]
        self._next = 0
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(trace.requests):
            if request.after is not None:
                self._followers[request.after].append(index)

    def start(self) -> None:
        """One after the other: the agenda stays short."""
        if self._next < len(self._at_their_time):
            index = self._at_their_time[self._next]
            self._next += 1
            self._agenda.at(self._requests[index].at_s, self._arrived, index)

    def _arrived(self, index: int) -> None:
        self.start()
        self._arrive(index)

    def ended(self, index: int, done_s: float) -> None:
        """Whoever waited for this one thinks, and asks."""
        for follower in self._followers.pop(index, ()):
            request = self._requests[follower]
            self._agenda.at(max(request.at_s, done_s + request.think_s), self._arrive, follower)
