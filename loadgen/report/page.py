"""One HTML file that shows a run, or several targets and runs: no part of it comes from elsewhere, so it works offline
and stays what it was."""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

import orjson

from loadgen.report import tables
from loadgen.report.attainment import attainment_figures
from loadgen.report.distributions import distribution_figures
from loadgen.report.files import check_writable, write
from loadgen.report.groups import Entry, Group, grouped, slo_of
from loadgen.report.look import HEIGHT_PX, Figure
from loadgen.report.measures import Result, percent_text, rate_text, time_text
from loadgen.report.timeline import timeline_figures
from shared.errors import ConfigError

_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(
    path: Path, entries: list[Entry], *, title: str | None = None, comparison: dict[str, Any] | None = None
) -> None:
    """One entry: a page of one run. Several: targets side by side, with `comparison` also their ratios."""
    groups = grouped(entries)
    slo = slo_of(groups)
    figures = {
        "Latencies": distribution_figures(groups, slo),
        "Over time": timeline_figures(groups),
        "Service level": attainment_figures(groups, slo),
    }
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title or _title(entries)),
        body="\n".join(_parts(title or _title(entries), groups, figures, comparison)),
        figures=_script_json([_plain(figure) for drawn in figures.values() for figure in drawn]),
        plotly=_plotly(),
        height=str(HEIGHT_PX),
    )
    write(path, [text.encode()])


def check_outputs(json: Path | None, records: Path | None, page: Path | None) -> None:
    """Raises ConfigError when one of these files could not be written in the end."""
    for path in (json, records, page):
        if path is not None:
            check_writable(path)
    if page is not None:
        _plotly()


def _title(entries: list[Entry]) -> str:
    names = list(dict.fromkeys(entry.target for entry in entries))
    trace = entries[0].result["trace"]
    return f"{' and '.join(names)} under {trace}" if len(names) > 1 else f"Replay of {trace}"


def _parts(
    title: str, groups: list[Group], figures: dict[str, list[Figure]], comparison: dict[str, Any] | None
) -> list[str]:
    entries = [entry for group in groups for entry in group.entries]
    notes = list(dict.fromkeys(note for entry in entries for note in entry.result.get("notes") or []))
    notes += [note for note in (comparison or {}).get("notes") or [] if note not in notes]
    return [
        _header(title, entries),
        *_numbers(groups, comparison),
        *(tables.section(name, _figures(drawn)) for name, drawn in figures.items()),
        tables.section("Errors", tables.error_table(entries)),
        tables.section("Notes", tables.bullets(notes) if notes else ""),
        tables.section("How it was measured", tables.definitions(), "<br>", tables.bullets(tables.METHOD)),
    ]


def _header(title: str, entries: list[Entry]) -> str:
    results = [entry.result for entry in entries]
    invalid = [entry for entry in entries if not entry.result["valid"]]
    verdict = _invalid(entries, invalid) if invalid else tables.tag("p", _valid_words(entries), class_="verdict")
    scheduled = sum(result["requests"]["scheduled"] for result in results)
    first = results[0]
    details = [
        ("Target", _each(result["target"] for result in results)),
        ("Model", _each(result["model"] for result in results)),
        ("Trace", _each(result["trace"] for result in results)),
        ("Started", escape(first.get("started") or "")),
        ("Requests", f"{scheduled:,} scheduled" + (f" in {len(results)} runs" if len(results) > 1 else "")),
        ("Measured", _duration(first) + ("" if len(results) == 1 else ", in the first run")),
        ("SLO", escape(first.get("slo") or "none given")),
        ("Highest rate", "<br>".join(_best(result) for result in results if result.get("goodput_search"))),
        ("Schedule", _each((result["schedule_sha256"] for result in results), "code")),
        ("Client", _client([result.get("client") or {} for result in results])),
    ]
    return tables.tag("header", tables.tag("h1", escape(title)) + verdict + tables.facts(details))


def _duration(result: Result) -> str:
    start_s, end_s = result["window_s"]
    if start_s is None or end_s is None:
        return "unknown"
    return f"{end_s - start_s:,.1f} s, from {start_s:,.1f} s to {end_s:,.1f} s of the run"


def _best(result: Result) -> str:
    """Of a search: the highest rate that still met the SLO for so large a share of requests."""
    found = result["goodput_search"]["best"].items()
    said = (f"{rate_text(rate) + ' req/s' if rate else 'none'} at {float(share) * 100:g} %" for share, rate in found)
    return escape(f"{result['target']}: {', '.join(said)}")


def _valid_words(entries: list[Entry]) -> str:
    if len(entries) > 1:
        return f"All {len(entries)} runs are valid"
    attained = entries[0].result.get("attainment")
    met = "" if attained is None or not entries[0].result.get("slo") else f", {percent_text(attained)} met the SLO"
    return f"Valid run{met}"


def _invalid(entries: list[Entry], invalid: list[Entry]) -> str:
    several = len(entries) > 1
    head = f"INVALID: {len(invalid)} of {len(entries)} runs" if several else "INVALID RUN"
    reasons = [
        escape(f"{entry.target}, run {_number(entries, entry)}: {reason}" if several else reason)
        for entry in invalid
        for reason in entry.result.get("invalid_reasons") or ["no reason was given"]
    ]
    listed = tables.tag("ul", "".join(tables.tag("li", reason) for reason in reasons))
    what = "Numbers of invalid runs" if several else "The numbers below"
    shouted = tables.tag("strong", head) + listed + f"{what} say nothing about the server."
    return tables.tag("div", shouted, class_="invalid", role="alert")


def _number(entries: list[Entry], entry: Entry) -> int:
    return [other for other in entries if other.target == entry.target].index(entry) + 1


def _each(texts: Any, name: str = "span") -> str:
    """Different values only, in order."""
    return "<br>".join(tables.tag(name, escape(text)) for text in dict.fromkeys(texts))


def _client(clients: list[dict[str, Any]]) -> str:
    """The worst of all runs."""
    shares = [process["cpu_share"] for client in clients for process in client.get("processes") or []]
    lags = [client["send_lag_s"] for client in clients if (client.get("send_lag_s") or {}).get("n")]
    said = []
    if shares:
        said.append(f"at most {max(share or 0.0 for share in shares) * 100:.0f} % of a core each")
    if lags:
        p99_s, most_s = (max(lag[key] for lag in lags) for key in ("p99", "max"))
        said.append(f"sent late by {time_text(p99_s)} (P99), {time_text(most_s)} (max)")
    return "; ".join(said)


def _numbers(groups: list[Group], comparison: dict[str, Any] | None) -> list[str]:
    entries = [entry for group in groups for entry in group.entries]
    if len(entries) == 1:
        result = entries[0].result
        splitwise = tables.splitwise_table(result["splitwise"]) if result.get("splitwise") else ""
        return [
            tables.cards(result),
            tables.section("Latency in numbers", tables.latency_table(result)),
            tables.section("Splitwise SLO", splitwise),
        ]
    answer = tables.bullets(comparison["answer"]) if comparison and comparison.get("answer") else ""
    return [
        tables.target_cards(groups),
        tables.section("Comparison", answer, tables.ratio_table(comparison) if comparison else ""),
        tables.section("Runs", tables.run_table(groups)),
    ]


def _figures(figures: list[Figure]) -> str:
    drawn = "".join(
        tables.tag(
            "figure",
            tables.tag("h3", escape(figure.title))
            + tables.tag("figcaption", escape(figure.caption))
            + tables.tag("div", "", id=figure.name, class_="plot"),
        )
        for figure in figures
    )
    return tables.tag("div", drawn, class_="figures") if drawn else ""


def _plain(figure: Figure) -> dict[str, Any]:
    return {"name": figure.name, "data": figure.data, "layout": figure.layout}


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace("<", "\\u003c")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("a page needs plotly, which is not installed: pip install 'splitmesh[load]'") from error
    return str(get_plotlyjs())
