"""The page as a file: what its figures show, how much it draws, and that text from outside stays text."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.measure.latencies import measured
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.record import Outcome, Record, Run
from loadgen.report.attainment import attainment_figures, scaled_attainment
from loadgen.report.distributions import CDF_POINTS, SCATTER_POINTS, cdf, distribution_figures
from loadgen.report.groups import Entry, grouped
from loadgen.report.look import PALETTE, Figure, log_ticks, thinned
from loadgen.report.page import write_page
from loadgen.report.timeline import _gap_ends_s, percentiles_in_bins, present_at, timeline_figures
from tests.support.report_samples import SLO, sample_comparison, sample_entry, sample_run

LARGEST_PAGE_BYTES = 7_000_000


@pytest.fixture(scope="module")
def entry() -> Entry:
    return sample_entry(sample_run(), splitwise=True)


def named(figures: list[Figure], name: str) -> Figure:
    return next(figure for figure in figures if figure.name == name)


def figures_in(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script id="figures" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    figures: list[dict[str, Any]] = json.loads(found[1])
    return figures


# ---- the numbers behind figures ----


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=1500))
def test_a_distribution_rises_to_all_samples_within_few_points(values: list[float]) -> None:
    x, share = cdf(np.array(values))
    assert x.size == share.size <= CDF_POINTS
    assert np.all(np.diff(x) >= 0) and np.all(np.diff(share) > 0)
    assert x[-1] == max(values) and share[-1] == 100
    below = np.searchsorted(np.sort(values), x, side="right") / len(values) * 100
    assert np.all(below >= share - 100 / len(values) - 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-5, 1e5), st.floats(1.25, 1e6))
def test_logarithmic_axes_have_a_few_ticks_within_their_range(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(ticks) and low <= ticks[0] and ticks[-1] <= low * factor


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_thinning_keeps_both_ends_and_never_repeats(count: int, limit: int) -> None:
    at = thinned(count, limit)
    assert len(at) == min(count, limit) == len(set(at.tolist()))
    assert count == 0 or at[0] == 0
    assert limit == 1 or count == 0 or at[-1] == count - 1


def test_percentiles_fall_into_the_bin_of_their_time() -> None:
    nan = float("nan")
    at_s = np.array([2.5, 0.1, 0.9, nan, 2.6, 0.5])
    values = np.array([5.0, 1.0, 3.0, 9.0, nan, 2.0])
    medians, most = percentiles_in_bins(at_s, values, np.arange(4.0), (50, 100))
    assert medians[0] == 2.0 and most[0] == 3.0
    assert np.isnan(medians[1]) and medians[2] == most[2] == 5.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), max_size=30))
def test_those_present_have_started_and_not_ended(stays: list[tuple[float, float]]) -> None:
    start = np.array([s for s, _ in stays] + [float("nan")])
    end = np.array([s + d for s, d in stays] + [1.0])
    instants = np.linspace(0, 16, 33)
    expected = [sum(s <= t < s + d for s, d in stays) for t in instants]
    assert present_at(instants, start, end).tolist() == expected


def test_gaps_are_placed_where_their_later_token_came() -> None:
    run = sample_run(requests=40)
    expected = [at_s for record in run.records for at_s in record.event_s[1:]]
    assert _gap_ends_s(measured(run)) == pytest.approx(expected)


def test_easing_the_limits_never_loses_a_request(entry: Entry) -> None:
    assert entry.run is not None
    tables = [measured(entry.run)]
    shares = [scaled_attainment(tables, SLO, scale) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert shares == sorted(shares) and shares[0] < shares[-1] < 100  # failed requests miss any limit
    assert shares[2] == pytest.approx(entry.result["attainment"] * 100)


# ---- figures ----


def test_a_run_has_all_its_figures(entry: Entry) -> None:
    groups = grouped([entry])
    distributions = distribution_figures(groups, SLO)
    assert [figure.name for figure in distributions] == ["cdf-ttft", "cdf-itl", "cdf-tpot", "cdf-e2e", "scatter-ttft"]
    assert [figure.name for figure in timeline_figures(groups)] == [
        "timeline-rates", "timeline-ttft", "timeline-gaps", "timeline-in-system", "timeline-queues",
    ]  # fmt: skip
    assert [figure.name for figure in attainment_figures(groups, SLO)] == ["attainment-scale", "attainment-each"]
    assert named(distributions, "cdf-ttft").layout["shapes"][0]["x0"] == 0.6
    assert named(distributions, "cdf-itl").layout["shapes"] == []


def test_the_figures_agree_with_the_result(entry: Entry) -> None:
    groups = grouped([entry])
    ttft = named(distribution_figures(groups, SLO), "cdf-ttft").data[0]
    assert len(ttft["x"]) == entry.result["ttft_s"]["n"]
    assert ttft["x"][-1] == pytest.approx(entry.result["ttft_s"]["max"], rel=1e-4)
    bars = named(attainment_figures(groups, SLO), "attainment-each").data[0]
    assert bars["y"][0] == pytest.approx(entry.result["attainment"] * 100, rel=1e-4)
    rates = named(timeline_figures(groups), "timeline-rates").data
    width_s = rates[1]["x"][1] - rates[1]["x"][0]
    assert sum(rates[1]["y"]) * width_s == pytest.approx(entry.result["requests"]["completed"], rel=1e-3)
    assert sum(rates[0]["y"]) * width_s == pytest.approx(entry.result["requests"]["scheduled"], rel=1e-3)


def test_requests_without_a_token_stand_above_all_others(entry: Entry) -> None:
    completed, failed = named(distribution_figures(grouped([entry]), None), "scatter-ttft").data
    assert (completed["name"], failed["name"]) == ("completed", "failed")
    assert max(failed["y"]) > max(completed["y"])
    assert failed["marker"]["symbol"] != completed["marker"]["symbol"]


def test_large_runs_are_thinned_and_the_figure_says_so() -> None:
    records = [
        Record(
            index=n, prompt_tokens=100 + n % 50, output_tokens=2, due_s=n / 100, sent_s=n / 100,
            event_s=[n / 100 + 1, n / 100 + 2], event_tokens=[1, 1], done_s=n / 100 + 2, outcome=Outcome.COMPLETED,
        )
        for n in range(12_000)
    ]  # fmt: skip
    run = dataclasses.replace(sample_run(requests=1), records=records, scheduled=12_000, window_s=(0.0, 120.0))
    figures = distribution_figures(grouped([Entry(target="t", result={}, run=run)]), None)
    scatter, ttft = named(figures, "scatter-ttft"), named(figures, "cdf-ttft")
    assert len(scatter.data[0]["x"]) == SCATTER_POINTS and "5,000 of 12,000" in scatter.caption
    assert len(ttft.data[0]["x"]) == CDF_POINTS and "500 points" in ttft.caption


def test_each_target_keeps_its_colour_and_what_was_due_is_drawn_once() -> None:
    entries, _ = sample_comparison(runs=2, requests=60)
    groups = grouped(entries)
    assert [(group.name, group.colour, len(group.tables)) for group in groups] == [
        ("splitmesh", PALETTE[0], 2), ("one-pool baseline", PALETTE[1], 2),
    ]  # fmt: skip
    for figure in distribution_figures(groups, SLO)[:4]:
        assert [(t["name"], t["line"]["color"]) for t in figure.data] == [(g.name, g.colour) for g in groups]
    rates = named(timeline_figures(groups), "timeline-rates")
    assert [t["name"] for t in rates.data] == ["due", "completed (splitmesh)", "completed (one-pool baseline)"]


def test_a_search_shows_its_tries_in_the_order_of_their_rates(entry: Entry) -> None:
    tries = [
        {"rate_rps": 4.0, "attainment": 0.8, "valid": True},
        {"rate_rps": 2.0, "attainment": 1.0, "valid": True},
        {"rate_rps": 8.0, "attainment": None, "valid": False},
    ]
    searched = dataclasses.replace(entry, result={**entry.result, "goodput_search": {"tries": tries, "best": {}}})
    trace = named(attainment_figures(grouped([searched]), None), "attainment-rate").data[0]
    assert (trace["x"], trace["y"]) == ([2.0, 4.0, 8.0], [100.0, 80.0, None])
    assert trace["marker"]["symbol"] == ["circle", "circle", "circle-open"]


# ---- the page ----


def test_a_page_is_one_file_without_addresses_to_load_from(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, [entry])
    text = path.read_text()
    own = text.replace(re.search(r"<script>(/\*\*.*?)</script>", text, re.DOTALL)[1], "")  # type: ignore[index]
    assert not re.search(r"https?://|<(?:link|script|img)[^>]+(?:src|href)=\"(?!data:)", own)
    assert path.stat().st_size < LARGEST_PAGE_BYTES
    places = re.findall(r'<div id="([\w-]+)" class="plot">', text)
    assert places == [figure["name"] for figure in figures_in(text)] and len(places) == 12
    for words in ("Valid run", "azure-conv (synthetic)", "rate scaled by 0.9", "5f5f5f5f", "Splitwise SLO", "TTFT"):
        assert words in own


def test_text_from_a_server_stays_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    run = dataclasses.replace(sample_run(requests=40), target=evil, model=evil, trace=evil, notes=[evil])
    bad = dataclasses.replace(run, invalid_reasons=[evil])
    write_page(tmp_path / "p.html", [sample_entry(run), dataclasses.replace(sample_entry(bad), target=f"{evil}2")])
    text = (tmp_path / "p.html").read_text()
    assert "<script>alert" not in text
    assert any(evil in trace["name"] for figure in figures_in(text) for trace in figure["data"])


def test_an_invalid_run_is_loud(tmp_path: Path) -> None:
    run = dataclasses.replace(sample_run(requests=40), invalid_reasons=["the client was late"])
    write_page(tmp_path / "p.html", [sample_entry(run)])
    text = (tmp_path / "p.html").read_text()
    assert "INVALID RUN" in text and "the client was late" in text and "Valid run" not in text


def test_a_page_of_several_targets_has_ratios_and_all_runs(tmp_path: Path) -> None:
    entries, comparison = sample_comparison(runs=2, requests=60)
    write_page(tmp_path / "p.html", entries, comparison=comparison)
    text = (tmp_path / "p.html").read_text()
    assert "All 4 runs are valid" in text and text.count('class="met">valid') == 4
    assert "one-pool baseline takes 1.2 times" in text and "in turns" in text
    worse = re.search(r'TPOT median \(ms\).*?<span class="(\w+)">(\d\.\d\d)×', text)
    assert worse is not None and worse[1] == "worse" and float(worse[2]) > 1.1


@pytest.mark.parametrize("records", [0, 5])
def test_a_run_in_which_nothing_worked_has_a_page(tmp_path: Path, records: int) -> None:
    never = [Record(index=n, prompt_tokens=9, output_tokens=9, due_s=float(n)) for n in range(records)]
    run = Run(
        target="t",
        model="m",
        trace="x",
        schedule_sha256="0" * 64,
        scheduled=records,
        records=never,
        window_s=(0.0, 5.0),
    )
    entry = Entry(target="t", result=result(run, slo=Slo.parse("ttft=1")), run=run)
    write_page(tmp_path / "p.html", [entry])
    assert "INVALID RUN" in (tmp_path / "p.html").read_text()


def test_results_without_records_have_a_page_without_their_figures(entry: Entry, tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", [dataclasses.replace(entry, run=None)])
    names = [figure["name"] for figure in figures_in((tmp_path / "p.html").read_text())]
    assert names == ["attainment-each"]
