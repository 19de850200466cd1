"""python -m services.router"""

import sys

from services.router.service import Router
from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.runtime.config import Settings
from shared.runtime.launch import launch, service_id
from shared.runtime.supervise import Supervisor


async def router(settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    await Router(router_id=service_id(settings, "router"), broker=broker, clock=SystemClock()).run(supervisor)


if __name__ == "__main__":
    sys.exit(launch("router", router))
