"""KV links between machines: each has one, in both directions, and transfers share it in the order in which they begin.

Layer by layer, a transfer begins with the prefill and hides behind it; what is exposed is the last layer's share, or
all that the link was too slow or too busy for, and a fixed time for signalling (Splitwise IV-C). A transfer occupies
both ends for its bytes over the slower rate; rates do not change while it runs.
"""


class Link:
    """One machine's. bytes_per_s: each direction; exposed_s: what no overlap hides."""

    def __init__(self, bytes_per_s: float, exposed_s: float) -> None:
        self.bytes_per_s, self.exposed_s = bytes_per_s, exposed_s
        self.out_free_s = 0.0
        self.in_free_s = 0.0


def arrival_s(
    source: Link, target: Link, size_bytes: float, *, ready_s: float, computed_s: float, pieces: int
) -> float:
    """When the last byte is there. ready_s: when bytes may begin to flow; computed_s: when the last of `pieces` equal
    shares exists."""
    rate = min(source.bytes_per_s, target.bytes_per_s)
    takes_s = size_bytes / rate
    begins_s = max(ready_s, source.out_free_s, target.in_free_s)
    source.out_free_s = target.in_free_s = begins_s + takes_s
    return source.exposed_s + max(begins_s + takes_s, computed_s + takes_s / pieces)
