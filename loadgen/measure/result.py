"""The result of a run, as `replay` and `simulate` write it to JSON: plain values, None for what is undefined.

`requests` and `errors` are over the whole run; latencies, attainment and goodput over what was due in the window; rates
over what happened in the window.
"""

from collections import Counter
from typing import Any

import numpy as np

from loadgen.measure.confidence import confidence
from loadgen.measure.gates import reasons, remarks, send_lag_s
from loadgen.measure.latencies import MEASURES, BoolArray, Measured, measured
from loadgen.measure.slo import Slo, attainment, good, judge
from loadgen.measure.splitwise import IdleSpeed, nine_of
from loadgen.measure.stats import number, share, stats
from loadgen.record import Outcome, Run

Result = dict[str, Any]

MOST_ERRORS = 10


def result(
    run: Run,
    *,
    slo: Slo | None,
    idle: IdleSpeed | None = None,
    seed: int | None = 0,
    count_tolerance: float = 0.0,
) -> Result:
    """`idle` is needed for the SLO `splitwise`, and adds that table to any other; `seed`: of the bootstrap, None for no
    intervals."""
    table = measured(run)
    each = {} if slo is None else judge(table, slo, idle)
    met = None if slo is None else good(each)
    invalid = reasons(run, table, count_tolerance=count_tolerance)
    return {
        "target": run.target,
        "model": run.model,
        "trace": run.trace,
        "started": run.started,
        "notes": [*run.notes, *remarks(run)],
        "valid": not invalid,
        "invalid_reasons": invalid,
        "schedule_sha256": run.schedule_sha256,
        "duration_s": number(table.window_length_s),
        "window_s": [number(edge_s) for edge_s in run.window_s],
        "requests": _requests(run),
        "errors": _errors(run),
        **{name: stats(table.sample(name)[0]) for name in MEASURES},
        **_rates(table),
        "slo": None if slo is None else slo.text,
        "attainment": None if met is None else attainment(met, table),
        "attainment_each": {key: attainment(kept, table) for key, kept in each.items()},
        **_goodput(table, met),
        "splitwise": None if idle is None else nine_of(table, idle),
        "confidence": None if seed is None else confidence(table, met, seed=seed),
        "client": {
            "processes": [{"requests": c.requests, "cpu_share": number(c.cpu_share)} for c in run.clients],
            "send_lag_s": stats(send_lag_s(table)),
        },
    }


def _requests(run: Run) -> dict[str, int]:
    ends = Counter(record.outcome for record in run.records)
    return {"scheduled": run.scheduled, **{outcome.value: ends[outcome] for outcome in Outcome}}


def _errors(run: Run) -> dict[str, int]:
    """The most frequent ones of requests that did not complete."""
    ended_ill = (record for record in run.records if record.outcome is not Outcome.COMPLETED)
    return dict(Counter(record.error or record.outcome.value for record in ended_ill).most_common(MOST_ERRORS))


def _rates(table: Measured) -> dict[str, float | None]:
    """A prompt counts when its first token arrives, an answer's token when it arrives, a request when it completes."""
    ended = table.completed & table.inside(table.done_s)
    begun = table.inside(table.first_s)
    return {
        "output_tokens_per_s": share(int(table.window_tokens.sum()), table.window_length_s),
        "input_tokens_per_s": share(int(table.prompt_tokens[begun].sum()), table.window_length_s),
        "requests_per_s": share(int(ended.sum()), table.window_length_s),
    }


def _goodput(table: Measured, met: BoolArray | None) -> dict[str, float | None]:
    if met is None:
        return {"goodput_rps": None, "good_output_tokens_per_s": None}
    return {
        "goodput_rps": share(int(np.sum(met)), table.window_length_s),
        "good_output_tokens_per_s": share(int(table.tokens[met].sum()), table.window_length_s),
    }
