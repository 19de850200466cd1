"""What a terminal shows of a run: its result, a comparison, and how far it has come."""

import io
import re
from typing import Any

from rich.console import Console

from loadgen.report.comparison import compared_rows, print_comparison
from loadgen.report.live import PLAIN_LINE_S, LiveView, Snapshot, line_of
from loadgen.report.measures import attainment_interval, lower_is_better, rate_text, shown, time_text, title_of, verdict
from loadgen.report.summary import RED, WIDTH, print_summary, summary_lines


def stats(p50: float | None, n: int) -> dict[str, float | int | None]:
    if p50 is None:
        return {"mean": None, "p50": None, "p90": None, "p99": None, "max": None, "n": 0}
    return {"mean": p50 * 1.1, "p50": p50, "p90": p50 * 2, "p99": p50 * 3, "max": p50 * 4, "n": n}


def a_result(**more: Any) -> dict[str, Any]:
    latencies = ("ttft_s", "ttft_from_send_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s")
    return {
        **{key: stats(0.25, 300) for key in latencies},
        "itl_s": stats(0.03, 30_000),
        "target": "a",
        "model": "m",
        "trace": "t",
        "started": "",
        "notes": ["rate scaled by 2"],
        "valid": True,
        "invalid_reasons": [],
        "schedule_sha256": "ab" * 32,
        "duration_s": 50.0,
        "window_s": [10.0, 60.0],
        "requests": {"scheduled": 300, "completed": 290, "failed": 7, "rejected": 3},
        "errors": {"timed out": 7, "503 [red]busy": 3},
        "output_tokens_per_s": 123.4,
        "input_tokens_per_s": 1000.0,
        "requests_per_s": 4.8,
        "slo": "ttft=1",
        "attainment": 0.955,
        "attainment_each": {"ttft": 0.955},
        "goodput_rps": 4.6,
        "good_output_tokens_per_s": 110.0,
        "splitwise": None,
        "confidence": {"attainment": {"value": [0.93, 0.975]}},
        "client": {"processes": [], "send_lag_s": stats(None, 0)},
        **more,
    }


def printed(result: dict[str, Any], *, colours: bool = False) -> str:
    out = io.StringIO()
    print_summary(
        result, Console(file=out, width=80, force_terminal=colours, color_system="standard" if colours else None)
    )
    return out.getvalue()


def value_in(text: str, name: str) -> str:
    found = re.search(rf"^\s*{re.escape(name)}\s+(\S+)$", text, re.MULTILINE)
    assert found is not None, f"{name!r} is not in\n{text}"
    return found[1]


def test_the_summary_has_the_familiar_names_and_their_values_in_milliseconds() -> None:
    text = printed(a_result())
    assert "============ Serving Benchmark Result ============" in text
    assert "---------------Time to First Token----------------" in text
    assert value_in(text, "Successful requests:") == "290"
    assert value_in(text, "Failed requests:") == "7"
    assert value_in(text, "Rejected requests:") == "3"
    assert value_in(text, "Benchmark duration (s):") == "50.00"
    assert value_in(text, "Total input tokens:") == "50000"
    assert value_in(text, "Total generated tokens:") == "6170"
    assert value_in(text, "Request throughput (req/s):") == "4.80"
    assert value_in(text, "Output token throughput (tok/s):") == "123.40"
    assert value_in(text, "Request goodput (req/s):") == "4.60"
    assert value_in(text, "Mean TTFT (ms):") == "275.00"
    assert value_in(text, "Median ITL (ms):") == "30.00"
    assert value_in(text, "Max E2EL (ms):") == "1000.00"
    assert value_in(text, "SLO attainment (%):") == "95.50"
    assert value_in(text, "95 % interval (%):") == "93.0-97.5"
    assert "Note: rate scaled by 2" in text and "503 [red]busy" in text


def test_a_p99_of_few_samples_is_marked_and_the_mark_explained() -> None:
    text = printed(a_result())
    assert value_in(text, "P99 TTFT (ms):") == "750.00*"
    assert value_in(text, "P99 ITL (ms):") == "90.00"
    assert "* P99 of fewer than 1,000 samples" in text
    many = {key: stats(0.1, 1000) for key in ("ttft_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s")}
    assert "*" not in printed(a_result(**many))


def test_no_line_is_wider_than_the_table() -> None:
    cells = {q: {"value": 123.4567, "limit": 1.25, "met": False} for q in ("p50", "p90", "p99")}
    splitwise = {"ttft": cells, "tbt": cells, "met": False}
    lines = list(summary_lines(a_result(splitwise=splitwise, notes=["a note of many words " * 9], valid=False)))
    assert [text for text, _ in lines if len(text) > WIDTH] == []


def test_an_invalid_run_is_shouted_above_and_below_in_red_with_its_reasons() -> None:
    invalid = a_result(valid=False, invalid_reasons=["send lag p99 is 9.0 ms, the limit is 5 ms"])
    lines = list(summary_lines(invalid))
    title = next(n for n, (text, _) in enumerate(lines) if "Serving Benchmark Result" in text)
    shouts = [n for n, (text, style) in enumerate(lines) if "INVALID RUN" in text and style == RED]
    reasons = [n for n, (text, _) in enumerate(lines) if "send lag p99" in text]
    assert len(shouts) == len(reasons) == 2
    assert shouts[0] < reasons[0] < title < shouts[1] < reasons[1]
    assert "\x1b[1;31m" in printed(invalid, colours=True)
    assert "INVALID" not in printed(a_result())


def test_a_run_without_anything_still_has_a_summary() -> None:
    keys = ("ttft_s", "itl_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s")
    rates = ("output_tokens_per_s", "input_tokens_per_s", "requests_per_s", "goodput_rps", "attainment", "duration_s")
    nothing = {key: stats(None, 0) for key in keys} | dict.fromkeys(rates)
    text = printed(a_result(**nothing, window_s=[None, None], confidence={}, slo="ttft=1", attainment_each={}))
    assert value_in(text, "P99 TTFT (ms):") == "-"
    assert value_in(text, "Total input tokens:") == "-"
    assert value_in(text, "SLO attainment (%):") == "-"


def test_splitwise_cells_are_a_table() -> None:
    row = {"p50": {"value": 1.5, "limit": 2.0, "met": True}, "p99": {"value": None, "limit": 6.0, "met": False}}
    text = printed(a_result(splitwise={"ttft": row, "met": False}))
    assert re.search(r"^TTFT\s+1\.5/2 ok\s+∞/6 MISS$", text, re.MULTILINE)
    assert value_in(text, "All met:") == "NO"


def test_the_highest_rates_of_a_search_are_told() -> None:
    search = {"tries": [], "best": {"0.9": 5.6, "0.99": None}}
    text = printed(a_result(goodput_search=search))
    assert value_in(text, "Highest rate at 90 % (req/s):") == "5.60"
    assert value_in(text, "Highest rate at 99 % (req/s):") == "-"


# ---- comparison ----


def a_comparison() -> dict[str, Any]:
    slower = {"ratio": 1.5, "low": 1.4, "high": 1.6, "significant": True}
    same = {"ratio": 1.01, "low": 0.97, "high": 1.05, "significant": False}
    return {
        "targets": {
            "a": [a_result(), a_result(ttft_s=stats(0.2, 9)), a_result(ttft_s=stats(0.9, 9))],
            "b": [a_result(ttft_s=stats(0.375, 9))],
        },
        "ratios": {"b/a": {"extra": same, "output_tokens_per_s": slower, "ttft_s.p50": slower, "itl_s.p50": same}},
        "baseline": "a",
        "schedule_sha256": "ab" * 32,
        "notes": ["in turns"],
        "answer": ["b is slower [than a]."],
    }


def compared(comparison: dict[str, Any], *, colours: bool = False) -> str:
    out = io.StringIO()
    print_comparison(
        comparison, Console(file=out, width=160, force_terminal=colours, color_system="standard" if colours else None)
    )
    return out.getvalue()


def test_a_comparison_shows_medians_over_runs_ratios_and_what_is_not_significant() -> None:
    text = compared(a_comparison())
    ttft = next(line for line in text.splitlines() if "TTFT median" in line)
    assert [cell.strip() for cell in ttft.split("│")[1:-1]] == [
        "TTFT median (ms)", "250.00", "375.00", "1.50× [1.40, 1.60] worse",
    ]  # fmt: skip
    itl = next(line for line in text.splitlines() if "ITL median" in line)
    assert "1.01× [0.97, 1.05] not significant" in itl
    assert "(3 runs, baseline)" in text and "(1 run)" in text
    assert "b is slower [than a]." in text and "Note: in turns" in text


def test_more_is_better_for_rates_and_worse_for_latencies() -> None:
    more = {"ratio": 1.5, "low": 1.4, "high": 1.6, "significant": True}
    assert verdict("ttft_s.p99", more) == "worse"
    assert verdict("goodput_rps", more) == "better"
    assert verdict("goodput_rps", more | {"ratio": 0.5}) == "worse"
    assert verdict("goodput_rps", more | {"significant": False}) == "same"
    assert verdict("goodput_rps", more | {"significant": None}) == "unknown"
    assert verdict("something", more) == "different"
    lines = compared(a_comparison(), colours=True).splitlines()
    assert any("TTFT median" in line and "\x1b[31m" in line for line in lines)
    assert any("Output token" in line and "\x1b[32m" in line for line in lines)


def test_rows_stand_in_their_usual_order_and_unknown_ones_last() -> None:
    comparison = a_comparison()
    assert compared_rows(comparison) == ["ttft_s.p50", "itl_s.p50", "output_tokens_per_s", "extra"]
    without = compared_rows(comparison | {"ratios": {}})
    assert without[0] == "ttft_s.p50" and "goodput_rps" in without


def test_an_invalid_run_of_a_comparison_is_named() -> None:
    comparison = a_comparison()
    comparison["targets"]["a"][1] |= {"valid": False, "invalid_reasons": ["the client was busy"]}
    assert compared(comparison).count("INVALID RUN a, run 2: the client was busy") == 2


# ---- words ----


def test_values_are_shown_in_the_unit_that_their_title_names() -> None:
    assert (title_of("ttft_s.p50"), shown("ttft_s.p50", 0.25)) == ("TTFT median (ms)", "250.00")
    assert (title_of("attainment"), shown("attainment", 0.955)) == ("SLO attainment (%)", "95.5")
    assert (title_of("extra"), shown("extra", 2.0), lower_is_better("extra")) == ("extra", "2.00", None)
    assert [time_text(s) for s in (None, 0.000872, 0.0999, 0.123, 0.9996, 1.234, 250.4)] == [
        "-", "0.872 ms", "99.9 ms", "123 ms", "1 s", "1.23 s", "250 s",
    ]  # fmt: skip
    assert [rate_text(value) for value in (0.4234, 5.33, 1168.2)] == ["0.423", "5.33", "1,168"]
    assert attainment_interval({"confidence": {"attainment": {"value": None}}}) is None


# ---- progress ----


def at(elapsed_s: float, done: int = 5) -> Snapshot:
    return Snapshot(
        prepared=20, sent=10, running=4, done=done, failed=1, total=20, ttft_p50_s=0.2, tbt_p50_s=None,
        elapsed_s=elapsed_s, left_s=75.0,
    )  # fmt: skip


def test_without_a_terminal_a_plain_line_comes_every_ten_seconds_and_at_the_end() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=200, force_terminal=False)) as progress:
        for tenth in range(251):
            progress.update(at(tenth / 10, done=tenth))
    lines = out.getvalue().splitlines()
    assert [re.search(r" (\d+)/20 done", line)[1] for line in lines] == ["0", "100", "200", "250"]  # type: ignore[index]
    assert PLAIN_LINE_S == 10


def test_a_terminal_is_redrawn_at_most_four_times_a_second() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True)
    with LiveView(console) as progress:
        for hundredth in range(200):
            progress.update(at(hundredth / 100))
    assert 4 <= out.getvalue().count("sent") <= 4 * 2 + 3


def test_the_line_says_it_all() -> None:
    line = line_of(at(65.0))
    assert line == (" 30% 5/20 done, 4 running, 10 sent, 1 failed | TTFT p50 200 ms, TBT p50 - | 1:05, 1:15 left")
    assert Snapshot.__dataclass_params__.frozen  # type: ignore[attr-defined]
