"""Traces that tell time in coarse steps, so that many requests seem to come at one instant."""

import numpy as np

from loadgen.traces.draws import Floats

SHORTEST_STEP_S = 1.0
AT_ONCE = 1.5  # requests per instant, on average, from which on the instants are an artefact
OFF_STEP = 0.02  # how far a gap may be from a whole number of steps, as a share of one
MOST_OFF_STEP = 0.05  # share of gaps that may be farther off


def found(at_s: Floats) -> float | None:
    """The step in seconds; None when times are not told in steps of a second or more. `at_s` is in order."""
    instants = np.unique(at_s)
    if len(instants) < 2 or len(at_s) < AT_ONCE * len(instants):
        return None
    gaps_s = np.round(np.diff(instants), 2)
    values, times_seen = np.unique(gaps_s, return_counts=True)
    step_s = float(values[np.argmax(times_seen)])
    if step_s < SHORTEST_STEP_S:
        return None
    in_steps = gaps_s / step_s
    off = (np.abs(in_steps - np.rint(in_steps)) > OFF_STEP) | (in_steps < 0.5)
    return step_s if off.mean() <= MOST_OFF_STEP else None


def spread(at_s: Floats, step_s: float, rng: np.random.Generator) -> Floats:
    """Each instant's requests uniformly at random from it to the end of the step, in the order they had; to a
    microsecond."""
    instants, first, count = np.unique(at_s, return_index=True, return_counts=True)
    room_s = np.minimum(np.append(np.diff(instants), step_s), step_s)
    shares = rng.random(len(at_s))
    result = at_s.copy()
    for start, many, room in zip(first.tolist(), count.tolist(), room_s.tolist(), strict=True):
        result[start : start + many] += np.sort(shares[start : start + many]) * room
    return np.round(result, 6)
