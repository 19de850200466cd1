"""Names that must not be mixed up.

A `WorkerId` names one incarnation: `prompt-0.3f9a2c` is another worker than `prompt-0.81b07e`, so everything that
belonged to a dead process (its stream, its KV blocks, its links) is fenced by its name alone.
"""

from typing import NewType

RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)
ServiceId = NewType("ServiceId", str)
Address = NewType("Address", str)  # "host:port" of a process's link server
EntryId = NewType("EntryId", str)  # id of an entry in a broker stream, "milliseconds-sequence"
StreamName = NewType("StreamName", str)

# One attempt at a request: what owns KV blocks and transfers, so that a newer attempt never meets an older one's.
Attempt = tuple[RequestId, int]
