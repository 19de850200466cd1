"""python -m services.pool_manager"""

import sys

from services.pool_manager.service import PoolManager
from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.policy.replay import Opening
from shared.runtime.config import Settings
from shared.runtime.journal import journal
from shared.runtime.launch import launch, service_id
from shared.runtime.supervise import Supervisor


async def pool_manager(settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    manager_id = service_id(settings, "pool_manager")
    clock, moves = SystemClock(), settings.pools == "moving"
    with journal(settings.journal, Opening(service="pool_manager", service_id=manager_id), clock) as note:
        manager = PoolManager(manager_id=manager_id, broker=broker, clock=clock, moves=moves, note=note)
        await manager.run(supervisor)


if __name__ == "__main__":
    sys.exit(launch("pool_manager", pool_manager))
