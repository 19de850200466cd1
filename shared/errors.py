"""The exception tree. Each class answers: whose fault is it, and may it be tried again?

    MeshError
    ├── Rejected        the caller's fault (HTTP 4xx); trying again unchanged fails again
    │   └── ConfigError     a start-up option or environment variable is wrong
    ├── Overloaded      nobody's fault (HTTP 429 or 503); try again after `retry_after_s`
    ├── Transient       a neighbour (the broker) did not answer; the same call may succeed later
    ├── PeerLost        the process at the other end of a link or transport is gone
    ├── HandoffFailed   the KV cache of one request did not arrive; the request can be computed again
    └── BadFrame        bytes that are no message; goes to the dead-letter stream, never tried again

Adapters translate the errors of the libraries they wrap into these. Bugs are not in the tree: they crash.
"""


class MeshError(Exception):
    """Root of every error that the mesh raises on purpose."""


class Rejected(MeshError):
    """Bad input. `param` names the offending field, `code` is a stable machine-readable word."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class ConfigError(Rejected):
    """A start-up option is unknown, malformed or impossible on this machine."""


class Overloaded(MeshError):
    """No room now. `retry_after_s` is an honest estimate in seconds, None if no wait would help; `code` is a stable
    word, `status` is 429 (load) or 503 (nobody there)."""

    def __init__(
        self, message: str, *, retry_after_s: float | None, status: int = 503, code: str = "overloaded"
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.code = code


class Transient(MeshError):
    """The broker or another neighbour did not answer in time."""


class PeerLost(MeshError):
    """The other end is gone; `peer` names it."""

    def __init__(self, peer: str, why: str) -> None:
        super().__init__(f"{peer}: {why}")
        self.peer = peer


class HandoffFailed(MeshError):
    """A KV transfer ended without every layer intact."""


class BadFrame(MeshError):
    """Undecodable or oversized bytes."""
