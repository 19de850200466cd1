"""What `compare --self` decides by itself: variants, winners, pairs, and what it says of them."""

from typing import Any

from loadgen.own_modes import COLOCATED, DISAGGREGATED, MODES, Tried, Variant, answer, ranked, variants, winners
from loadgen.rounds import Contest
from loadgen.targets import Target
from loadgen.traces.trace import Request, Trace


def test_colocated_is_tried_with_all_chunk_sizes_in_both_layouts() -> None:
    every = variants(2)
    sizes = {
        (mode, threads): [int(v.options[-1]) for v in every if v.mode == mode and f" {threads} threads" in v.label]
        for mode, threads in ((COLOCATED, 2), (COLOCATED, 1), (DISAGGREGATED, 1))
    }
    assert sizes == {
        (COLOCATED, 2): [2048, 1024, 512, 256, 128, 64],
        (COLOCATED, 1): [2048, 1024, 512, 256, 128, 64],
        (DISAGGREGATED, 1): [2048, 512],
    }
    assert len(every) == 14 and len(set(every)) == 14


def test_every_variant_has_the_same_cores() -> None:
    for variant in variants(5):
        options = dict(zip(variant.options[::2], variant.options[1::2], strict=True))
        workers = 2 if variant.mode == DISAGGREGATED else int(options["--mixed-workers"])
        assert workers * int(options["--threads"]) == 4, variant


def test_the_slo_decides_then_the_time_to_the_end() -> None:
    slow, quick, missing, dead = variants(2)[:4]
    tried = [
        Tried(variant=dead, attained=0.0, e2e_s=float("inf")),
        Tried(variant=missing, attained=0.8, e2e_s=1.0),
        Tried(variant=slow, attained=0.9, e2e_s=3.0),
        Tried(variant=quick, attained=0.9, e2e_s=2.0),
    ]
    assert ranked(tried) == [quick, slow, missing, dead]


def test_all_are_tried_shortly_and_the_best_two_of_each_mode_for_longer() -> None:
    """The third best of the first pass would win the second, and is not asked any more."""
    every = variants(2)
    requests = tuple(Request(at_s=n / 2, prompt_tokens=9, output_tokens=4) for n in range(200))
    tries: list[tuple[Variant, float]] = []

    def tried(variant: Variant, trace: Trace) -> Tried:
        tries.append((variant, trace.span_s))
        place = every.index(variant)
        first = trace.span_s <= 10.0
        return Tried(variant=variant, attained=1.0, e2e_s=abs(place - 5.1) if first else 100.0 - place)

    found = winners(every, Trace(name="t", requests=requests), tried)
    assert found == {COLOCATED: every[6], DISAGGREGATED: every[13]}
    short = [variant for variant, span_s in tries if span_s <= 10.0]
    assert short == every[:12], "two disaggregated ones are finalists already"
    assert [(v, s) for v, s in tries if s > 10.0] == [(v, 20.0) for v in (every[5], every[6], *every[12:])]


def contest(*names: str, subject: str | None = None) -> Contest:
    targets = [Target(name=name, url="http://s") for name in names]
    return Contest(targets=targets, trace=Trace(name="t", requests=()), slo=None, subject=subject)


def test_ratios_are_over_the_first_or_of_the_subject() -> None:
    assert contest("a", "b", "c").pairs() == [("b", "a"), ("c", "a")]
    pairs = contest(*MODES, "other", subject=DISAGGREGATED).pairs()
    assert pairs == [(DISAGGREGATED, COLOCATED), (DISAGGREGATED, "other")]


def ratio(value: float) -> dict[str, Any]:
    return {"ratio": value, "low": value * 0.9, "high": value * 1.1, "significant": True}


def compared(*, other_valid: bool = True, colocated_valid: bool = True) -> dict[str, Any]:
    return {
        "trace": "azure-conv",
        "slo": "ttft=3",
        "targets": {
            COLOCATED: [{"valid": colocated_valid, "attainment": 0.5}] * 3,
            DISAGGREGATED: [{"valid": True, "attainment": 1.0}] * 3,
            "other": [{"valid": True, "attainment": 0.25}] * 2 + [{"valid": other_valid, "attainment": 0.25}],
        },
        "ratios": {
            f"{DISAGGREGATED}/{COLOCATED}": {"attainment": ratio(2.0), "ttft_s.p50": ratio(1.5)},
            f"{DISAGGREGATED}/other": {"attainment": ratio(4.0), "e2e_s.p50": ratio(0.5)},
        },
    }


def test_the_answer_tells_of_each_rival() -> None:
    assert answer(compared()) == [
        "Is disaggregation worth it for azure-conv on this machine? Yes: it meets the SLO more often.",
        "SLO ttft=3 met by 100% of requests, colocated by 50%.",
        "Worse than colocated: TTFT P50 1.50x.",
        "And rather than other? Yes: it meets the SLO more often.",
        "SLO ttft=3 met by 100% of requests, other by 25%.",
        "Better than other: E2E P50 0.50x.",
    ]


def test_invalid_runs_of_one_rival_leave_the_other_question() -> None:
    assert (
        answer(compared(other_valid=False))[-1] == "And rather than other? It cannot be said: there are invalid runs."
    )
    first, second, *_ = answer(compared(colocated_valid=False))
    assert first.endswith("It cannot be said: there are invalid runs.") and second.startswith(
        "And rather than other? Yes"
    )
