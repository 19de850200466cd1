"""Names of the broker streams: who writes, who reads, how many entries are kept."""

from collections.abc import Mapping

from shared.ids import StreamName, WorkerId

SUBMITTED = StreamName("submitted")  # gateways → routers (consumer group); entries are deleted by `forward`
PLACEMENTS = StreamName("placements")  # routers → everyone
REPORTS = StreamName("reports")  # everyone → everyone
EVENTS = StreamName("events")  # workers → whoever wants to know: role changes
DEAD_LETTER = StreamName("dead-letter")  # frames that no one could decode or that were delivered too often

# Work queues are never trimmed: a trimmed entry is a lost request. The others are read by their tail only.
KEPT_ENTRIES: Mapping[StreamName, int] = {PLACEMENTS: 10_000, REPORTS: 2_000, EVENTS: 1_000, DEAD_LETTER: 1_000}

ROUTERS = "routers"  # the consumer group on SUBMITTED


def worker_stream(worker_id: WorkerId) -> StreamName:
    """Assigned, SetRole, DrainWorker for one incarnation; nobody else reads it, and it dies with the worker."""
    return StreamName(f"worker:{worker_id}")
