"""Who belongs to the mesh, decided from reports alone (the pool manager's part of the truth about life and death).

A worker is declared lost when it said goodbye, or when it is silent while others are heard. When nobody is heard the
broker is in trouble, and nobody is declared anything.
"""

from collections.abc import Iterator

from shared.ids import EntryId, WorkerId
from shared.policy.view import View
from shared.wire.messages import StreamMessage, WorkerLost, WorkerReport
from shared.wire.terms import State

STREAM_GRACE_S = 10.0


class Membership:
    def __init__(self) -> None:
        self._view = View()
        self._gone: dict[WorkerId, float] = {}  # declared lost, and when; its stream is deleted after a grace

    def apply(self, message: StreamMessage, entry_id: EntryId, now: float) -> None:
        self._view.apply(message, entry_id, now)
        if isinstance(message, WorkerReport) and message.state is not State.LOST:
            self._gone.pop(message.worker_id, None)

    def newly_lost(self, now: float) -> list[WorkerLost]:
        """Announcements to make; each worker once, unless it comes back."""
        return list(self._find_lost(now))

    def _find_lost(self, now: float) -> Iterator[WorkerLost]:
        for worker_id, worker in self._view.workers.items():
            said_goodbye = worker.report.state is State.LOST
            if worker_id not in self._gone and (said_goodbye or self._view.out_of_sight(worker)):
                self._gone[worker_id] = now
                yield WorkerLost(worker_id=worker_id, reason="said goodbye" if said_goodbye else "silent")

    def streams_to_delete(self, now: float) -> list[WorkerId]:
        """Workers whose stream nobody will read again; each once."""
        ripe = [worker_id for worker_id, at in self._gone.items() if at < now - STREAM_GRACE_S]
        self._view.forget(now)
        for worker_id in ripe:
            if worker_id not in self._view.workers:
                del self._gone[worker_id]
        return ripe
