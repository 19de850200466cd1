"""Who belongs to the mesh, decided from reports alone: the pool manager's part of the truth about life and death.

A worker is gone when it said goodbye, or when it has been silent for long while others are heard. When nobody is heard
the broker is in trouble, and nobody is gone.
"""

from shared.ids import WorkerId
from shared.policy.view import View
from shared.wire.terms import State

GRACE_S = 15.0  # a worker that was only stopped for less finds its stream as it was


class Membership:
    """Reads a view that others feed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._out_since: dict[WorkerId, float] = {}
        self._swept: set[WorkerId] = set()

    def gone(self, now: float) -> list[WorkerId]:
        """Workers whose stream nobody will read again, until `swept` says that it was deleted."""
        self._view.forget(now)
        out = {
            worker_id
            for worker_id, worker in self._view.workers.items()
            if worker.report.state is State.LOST or self._view.out_of_sight(worker)
        }
        self._swept &= out
        self._out_since = {worker_id: self._out_since.get(worker_id, now) for worker_id in sorted(out)}
        return [i for i, since in self._out_since.items() if now - since >= GRACE_S and i not in self._swept]

    def swept(self, worker_id: WorkerId) -> None:
        self._swept.add(worker_id)
