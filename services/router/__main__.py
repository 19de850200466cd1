"""python -m services.router"""

import sys

from services.router.service import Router
from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.policy.replay import Opening
from shared.policy.routing import Limits
from shared.runtime.config import Settings
from shared.runtime.journal import journal
from shared.runtime.launch import launch, service_id
from shared.runtime.supervise import Supervisor


async def router(settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    limits = Limits(borrow=settings.pools == "moving", ttft_target_s=settings.ttft_target_s)
    router_id = service_id(settings, "router")
    clock, opening = SystemClock(), Opening(service="router", service_id=router_id, limits=limits)
    with journal(settings.journal, opening, clock) as note:
        await Router(router_id=router_id, broker=broker, clock=clock, limits=limits, note=note).run(supervisor)


if __name__ == "__main__":
    sys.exit(launch("router", router))
