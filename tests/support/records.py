"""Records and runs for the tests of measures, faultless unless told otherwise."""

from collections.abc import Sequence

from loadgen.record import ClientProcess, Outcome, Record, Run


def completed(
    index: int, due_s: float, *times_s: float, prompt_tokens: int = 10, done_s: float | None = None
) -> Record:
    """Sent when due; one token at each of the times after `due_s`; done with the last, or `done_s` after `due_s`."""
    return Record(
        index=index,
        prompt_tokens=prompt_tokens,
        output_tokens=len(times_s),
        due_s=due_s,
        sent_s=due_s,
        event_s=[due_s + time_s for time_s in times_s],
        event_tokens=[1] * len(times_s),
        done_s=due_s + (times_s[-1] if done_s is None else done_s),
        outcome=Outcome.COMPLETED,
        status=200,
        usage_prompt_tokens=prompt_tokens,
        usage_output_tokens=len(times_s),
    )


def failed(index: int, due_s: float, *times_s: float, error: str = "broken", sent: bool = True) -> Record:
    return Record(
        index=index,
        prompt_tokens=10,
        output_tokens=9,
        due_s=due_s,
        sent_s=due_s if sent else None,
        event_s=[due_s + time_s for time_s in times_s],
        event_tokens=[1] * len(times_s),
        error=error,
    )


def run_of(
    records: Sequence[Record],
    *,
    window_s: tuple[float, float] = (0.0, 10.0),
    scheduled: int | None = None,
    clients: Sequence[ClientProcess] = (),
    schedule: str = "5c",
) -> Run:
    return Run(
        target="http://s",
        model="m",
        trace="t",
        schedule_sha256=schedule,
        scheduled=len(records) if scheduled is None else scheduled,
        records=list(records),
        window_s=window_s,
        clients=list(clients),
    )
