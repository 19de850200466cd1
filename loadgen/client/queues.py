"""The server's own word on its queues, asked once a second: what waits, what runs. Without metrics it says nothing."""

import http.client
import re
import threading
import urllib.request

from loadgen.client.server import Server
from loadgen.record import QueueSample
from shared.clock import Clock

EVERY_S = 1.0
ANSWER_WITHIN_S = 2.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>[-+.\deE]+)", re.MULTILINE)
_WAITING = ("num_requests_waiting", "requests_deferred", "num_queue_reqs")
_RUNNING = ("num_requests_running", "requests_processing", "num_running_reqs")


class QueueWatch:
    """A thread that asks /metrics until `close`, or until the server turns out to have none."""

    def __init__(self, server: Server, start_s: float, clock: Clock) -> None:
        self._request = urllib.request.Request(server.base_url + "/metrics", headers=dict(server.headers))
        self._start_s, self._clock = start_s, clock
        self._samples: list[QueueSample] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="queues", daemon=True)
        self._thread.start()

    def close(self) -> list[QueueSample]:
        self._ending.set()
        self._thread.join(ANSWER_WITHIN_S + 1.0)
        return self._samples

    def _ask_on(self) -> None:
        while not self._ending.wait(EVERY_S):
            try:
                with urllib.request.urlopen(self._request, timeout=ANSWER_WITHIN_S) as answer:
                    text = answer.read().decode(errors="replace")
            except TimeoutError:  # busy: it may answer later
                continue
            except (OSError, ValueError, http.client.HTTPException):
                return
            sample = parse(text, self._clock.now() - self._start_s)
            if sample is None:
                return
            self._samples.append(sample)


def parse(text: str, at_s: float) -> QueueSample | None:
    """From Prometheus text of vLLM, SGLang, llama.cpp or this mesh; None if it names no queue."""
    waiting, running = _sum(text, _WAITING), _sum(text, _RUNNING)
    if waiting is None and running is None:
        return None
    return QueueSample(at_s=at_s, waiting=waiting or 0.0, running=running or 0.0)


def _sum(text: str, endings: tuple[str, ...]) -> float | None:
    values = [float(m["value"]) for m in _SAMPLE.finditer(text) if m["name"].endswith(endings)]
    return sum(values) if values else None
