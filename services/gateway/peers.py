"""Which workers this gateway keeps links to, and which ones it takes for dead."""

from services.gateway.events import WorkerHeard
from shared.ids import Address, WorkerId
from shared.wire.messages import Placed
from shared.wire.terms import State

TRUST_AFTER_S = 1.5  # a report heard sooner after a loss was on its way before it
ROUTERS_KNOW_AFTER_S = 30.0
_REMEMBERED = 4096


class Peers:
    """Routers learn of a death seconds after the link is lost; until then they may place work on the dead."""

    def __init__(self) -> None:
        self._watched: set[Address] = set()
        self._worker_at: dict[Address, WorkerId] = {}
        self._lost_at: dict[WorkerId, float] = {}

    def start_watching(self, placed: Placed) -> list[Address]:
        """Those of the placement that are not watched yet."""
        self._worker_at |= {placed.prompt_address: placed.prompt_worker, placed.token_address: placed.token_worker}
        fresh = {placed.prompt_address, placed.token_address} - self._watched
        self._watched |= fresh
        return sorted(fresh)

    def link_lost(self, peer: Address, now: float) -> None:
        self._watched.discard(peer)
        if worker_id := self._worker_at.pop(peer, None):
            self._lost_at[worker_id] = now
            if len(self._lost_at) > _REMEMBERED:
                del self._lost_at[next(iter(self._lost_at))]

    def heard(self, heard: WorkerHeard) -> None:
        """One that was only silent is trusted again: the same incarnation speaks."""
        lost_at = self._lost_at.get(heard.worker_id, heard.at)
        if heard.state is not State.LOST and heard.at - lost_at > TRUST_AFTER_S:
            del self._lost_at[heard.worker_id]

    def recently_lost(self, now: float) -> tuple[WorkerId, ...]:
        """What routers may not know yet."""
        return tuple(worker_id for worker_id, at in self._lost_at.items() if now - at < ROUTERS_KNOW_AFTER_S)

    def dead_in(self, placed: Placed) -> dict[Address, WorkerId]:
        """Workers that were lost before the placement that names them was seen."""
        named = {placed.prompt_address: placed.prompt_worker, placed.token_address: placed.token_worker}
        return {address: worker_id for address, worker_id in named.items() if worker_id in self._lost_at}
