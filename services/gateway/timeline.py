"""What happened to each request and when: kept while it runs, and for the newest finished ones."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from shared.ids import RequestId


@dataclass(slots=True)
class Timeline:
    """`stages`: (name, seconds since arrival, details). `finished_attempt`: the one whose worker ended the request."""

    request_id: RequestId
    arrived_at: float
    stages: list[tuple[str, float, dict[str, Any]]] = field(default_factory=list)
    outcome: str | None = None
    finished_attempt: int | None = None

    def note(self, stage: str, now: float, **details: Any) -> None:
        self.stages.append((stage, now - self.arrived_at, details))

    def as_json(self) -> dict[str, Any]:
        stages = [{"stage": name, "at_s": round(at_s, 6), **details} for name, at_s, details in self.stages]
        return {"id": self.request_id, "outcome": self.outcome or "running", "stages": stages}


class Timelines:
    """`names` are what clients call their requests (`x-request-id`); of two of one name, the newer is meant."""

    def __init__(self, kept: int = 2000) -> None:
        self._kept = kept
        self._timelines: OrderedDict[RequestId, Timeline] = OrderedDict()
        self._names: OrderedDict[str, RequestId] = OrderedDict()

    def open(self, request_id: RequestId, now: float) -> Timeline:
        timeline = self._timelines[request_id] = Timeline(request_id, now)
        self._forget()
        return timeline

    def get(self, request_id: RequestId) -> Timeline | None:
        return self._timelines.get(request_id)

    def name(self, name: str, request_id: RequestId) -> None:
        self._names[name] = request_id
        self._names.move_to_end(name)
        if len(self._names) > self._kept:
            self._names.popitem(last=False)

    def find(self, asked: str) -> Timeline | None:
        """By the client's own name, by the id in the answer ("cmpl-…"), or by the bare one."""
        return self.get(self._names.get(asked) or RequestId(asked.rpartition("-")[2]))

    def _forget(self) -> None:
        """Drop the oldest finished ones; running ones stay however old they are."""
        surplus = len(self._timelines) - self._kept
        if surplus > 0:
            finished = [request_id for request_id, one in self._timelines.items() if one.outcome]
            for request_id in finished[:surplus]:
                del self._timelines[request_id]
