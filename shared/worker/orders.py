"""What a worker is told about itself: which home role it has, and that it shall leave.

A change of role takes effect at once and touches nothing that is queued or running: being mixed until that is done is
observed, not commanded.
"""

import structlog

from shared.wire.reports import DrainWorker, RoleChanged, SetRole
from shared.worker.worker import Worker

log = structlog.get_logger()


def on_set_role(worker: Worker, order: SetRole) -> None:
    """An operator's word stands until it is taken back; of pool managers, only the latest is heard."""
    if order.fence is None:
        worker.role_pinned = order.role is not None
    elif order.fence < worker.role_fence:
        log.warning("order of a former pool manager refused", fence=order.fence, latest=worker.role_fence)
        return
    else:
        worker.role_fence = order.fence
        if worker.role_pinned:
            return
    worker.news.set()
    was = worker.role
    if order.role is None or order.role is was:
        return
    worker.role = order.role
    changed = RoleChanged(worker_id=worker.options.worker_id, was=was, role=order.role, reason=order.reason)
    worker.role_changes.append(changed)
    log.info("home role changed", was=was.value, role=order.role.value, reason=order.reason)


def on_drain(worker: Worker, order: DrainWorker) -> None:
    log.info("leaving", worker_id=order.worker_id)
    worker.leaving.set()
