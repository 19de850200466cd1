"""Which workers this gateway keeps links to, and which ones it knows to be dead."""

from services.gateway.events import Command
from shared.ids import Address, WorkerId
from shared.wire.messages import Placed, State, WorkerReport

_REMEMBERED_LOSSES = 4096


class Peers:
    def __init__(self) -> None:
        self._watched: set[Address] = set()
        self._lost: dict[WorkerId, None] = {}

    def start_watching(self, placed: Placed) -> list[Address]:
        """Those of the placement that are not watched yet."""
        fresh = {placed.prompt_address, placed.token_address} - self._watched
        self._watched |= fresh
        return sorted(fresh)

    def link_lost(self, peer: Address) -> None:
        self._watched.discard(peer)

    def worker_lost(self, worker_id: WorkerId) -> None:
        self._lost[worker_id] = None
        if len(self._lost) > _REMEMBERED_LOSSES:
            del self._lost[next(iter(self._lost))]

    def heard(self, report: WorkerReport) -> list[Command]:
        """One that was only silent is trusted again: the same incarnation speaks."""
        if report.state is not State.LOST:
            self._lost.pop(report.worker_id, None)
        return []

    def dead_in(self, placed: Placed) -> WorkerId | None:
        """A worker that was lost before the placement that names it was seen."""
        return next((w for w in (placed.prompt_worker, placed.token_worker) if w in self._lost), None)
