"""Names of the broker streams: who writes, who reads, who trims."""

from shared.ids import StreamName, WorkerId

SUBMITTED = StreamName("submitted")  # gateways → routers (consumer group); entries are deleted by `forward`
PLACEMENTS = StreamName("placements")  # routers → everyone; trimmed by length
REPORTS = StreamName("reports")  # everyone → everyone; trimmed by length
DEAD_LETTER = StreamName("dead-letter")  # frames that no one could decode or that were delivered too often

ROUTERS = "routers"  # the consumer group on SUBMITTED


def worker_stream(worker_id: WorkerId) -> StreamName:
    """Assigned messages for one incarnation; nobody else reads it, and it dies with the worker."""
    return StreamName(f"worker:{worker_id}")
