"""When a ramp has found the limit: more and more requests are running, and first tokens take longer and longer."""

from dataclasses import dataclass, field

import numpy as np

SPAN_S = 30.0
EVERY_S = 1.0
RISE = 1.5  # of the median TTFT and of the running requests, second half of the span over the first


@dataclass(slots=True)
class Saturation:
    """`since_s`: when it was seen, in seconds of the run."""

    since_s: float | None = None
    _running: list[tuple[float, int]] = field(default_factory=list)
    _ended: list[tuple[float, int]] = field(default_factory=list)  # how many answers had ended by then

    def reached(self, at_s: float, running: int, ttft_s: list[float]) -> bool:
        """True once: both have risen over the last SPAN_S seconds, and requests are in fact piling up."""
        if self.since_s is not None or (self._running and at_s - self._running[-1][0] < EVERY_S):
            return False
        self._running.append((at_s, running))
        self._ended.append((at_s, len(ttft_s)))
        begin_s, middle_s = at_s - SPAN_S, at_s - SPAN_S / 2
        if begin_s < self._running[0][0]:
            return False
        early = [r for t, r in self._running if begin_s <= t < middle_s]
        late = [r for t, r in self._running if t >= middle_s]
        first = next(n for t, n in self._ended if t >= begin_s)
        half = next(n for t, n in self._ended if t >= middle_s)
        if half == first or len(ttft_s) == half:
            return False
        slower = np.median(ttft_s[half:]) > RISE * np.median(ttft_s[first:half])
        fuller = np.mean(late) > RISE * max(1.0, float(np.mean(early)))
        if slower and fuller:
            self.since_s = at_s
        return self.since_s is not None
