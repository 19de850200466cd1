"""What is known of one request when it has ended, and of a run. The live client and the simulator both make these;
measures and reports read nothing else.

Times are seconds since the start of the run, on one monotonic clock for all client processes.
"""

from dataclasses import dataclass, field
from enum import Enum

INTERRUPTED = "it was interrupted before its end"


class Outcome(Enum):
    COMPLETED = "completed"  # the answer ended as it should
    FAILED = "failed"  # an error, a broken stream, or no end by the deadline or the end of the drain
    REJECTED = "rejected"  # refused before the first token: HTTP 4xx, or 503


@dataclass(slots=True, kw_only=True)
class Record:
    """`due_s` is when it should have been sent: its time in the schedule, or for a user's next request the end of the
    one before plus the time to think. Latencies count from there. `event_s[i]` is the arrival of the i-th event with
    tokens, `event_tokens[i]` (>= 1) how many it brought. Token counts of `usage` are the server's own words."""

    index: int
    prompt_tokens: int
    output_tokens: int  # asked for
    due_s: float
    sent_s: float | None = None  # handed to HTTP; None: never
    event_s: list[float] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    done_s: float | None = None  # the end of the answer was seen
    outcome: Outcome = Outcome.FAILED
    error: str | None = None
    status: int = 0  # of HTTP; 0: no answer
    finish: str | None = None
    request_id: str = ""
    usage_prompt_tokens: int | None = None
    usage_output_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return sum(self.event_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProcess:
    """How one client process fared. `cpu_share`: of one core, at its busiest."""

    requests: int
    cpu_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSample:
    """What a server said of itself, `at_s` into the run."""

    at_s: float
    waiting: float
    running: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One replay of a schedule. Rates are taken over the window; latencies and attainment over what was due in it."""

    target: str
    model: str
    trace: str
    schedule_sha256: str
    scheduled: int
    records: list[Record]  # one per scheduled request, in the order of the schedule
    window_s: tuple[float, float]
    clients: list[ClientProcess] = field(default_factory=list)
    queues: list[QueueSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was done to the trace, what the server could not do
    invalid_reasons: list[str] = field(default_factory=list)
    started: str = ""  # UTC, ISO 8601

    @property
    def interrupted(self) -> bool:
        return INTERRUPTED in self.invalid_reasons
