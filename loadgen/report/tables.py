"""The parts of a page that are text and tables: HTML from results. Every text from outside is escaped here."""

from collections.abc import Iterable
from html import escape, unescape
from typing import Any

from loadgen.report.comparison import compared_rows, median_of_runs
from loadgen.report.groups import Entry, Group
from loadgen.report.measures import (
    ENOUGH_FOR_P99,
    LATENCIES,
    MISSING,
    RATES,
    STATISTICS,
    Result,
    attainment_interval,
    percent_text,
    rate_text,
    ratio_text,
    shown,
    splitwise_rows,
    splitwise_value,
    time_text,
    title_of,
    verdict,
)

METHOD = (
    "Percentiles interpolate linearly between the two nearest samples and are taken over pooled raw samples.",
    "Rates are taken over the measured window. Latencies and attainment are taken over the requests due in it.",
    "Intervals are 95 % bootstrap intervals that draw whole requests anew.",
    f"A P99 of fewer than {ENOUGH_FOR_P99:,} samples rests on fewer than ten of them; it is marked with *.",
    "A run is invalid when its own client was late or short of CPU, or when its records do not add up.",
)


def tag(name: str, inner: str, **attributes: str) -> str:
    """`inner` is HTML, attribute values are text. `class_` stands for class, `data_label` for data-label."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{inner}</{name}>"


def table(head: Iterable[str], body: Iterable[Iterable[str]], **attributes: str) -> str:
    """Cells are HTML. The first column names its row; narrow screens stack tables of class `stacked`."""
    names = list(head)
    lines = [tag("tr", "".join(tag("th", name) for name in names))]
    drawn = "".join(
        tag("tr", "".join(tag("td", cell, data_label=unescape(name)) if number else tag("th", cell, scope="row")
                          for number, (name, cell) in enumerate(zip(names, cells, strict=True))))
        for cells in body
    )  # fmt: skip
    return tag("div", tag("table", tag("thead", lines[0]) + tag("tbody", drawn), **attributes), class_="panel")


def bullets(texts: Iterable[str]) -> str:
    return tag("ul", "".join(tag("li", escape(text)) for text in texts), class_="plain")


def section(title: str, *parts: str) -> str:
    """Nothing where all parts are empty."""
    inner = "".join(parts)
    return tag("section", tag("h2", escape(title)) + inner) if inner else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Values are HTML; a pair without one is left out."""
    return tag("dl", "".join(tag("dt", escape(n)) + tag("dd", v) for n, v in pairs if v), class_="facts")


def cards(result: Result) -> str:
    """The figures that one looks for first, of one run."""
    requests = result["requests"]
    interval = attainment_interval(result)
    between = (
        f"95 % interval {interval[0] * 100:.1f}–{interval[1] * 100:.1f} %" if interval else "95 % interval unknown"
    )
    drawn = [_latency_card(latency.short, result[latency.key]) for latency in LATENCIES if latency.key in result]
    if result.get("slo"):
        drawn.insert(0, _card("SLO attainment", percent_text(result["attainment"]), between))
        drawn.insert(1, _card("Goodput", f"{rate_text(result['goodput_rps'])} req/s", "requests that met the SLO"))
    bad = f"{requests['failed']:,} failed, {requests['rejected']:,} rejected"
    drawn.append(_card("Completed", f"{requests['completed']:,} of {requests['scheduled']:,}", bad))
    served = f"{rate_text(result['requests_per_s'])} req/s, {rate_text(result['input_tokens_per_s'])} input tok/s"
    drawn.append(_card("Output", f"{rate_text(result['output_tokens_per_s'])} tok/s", served))
    return tag("div", "".join(drawn), class_="cards")


def target_cards(groups: list[Group]) -> str:
    """A card a target, medians over its runs."""
    drawn = []
    for group in groups:
        results = [dict(entry.result) for entry in group.entries]
        attained = percent_text(median_of_runs(results, "attainment"))
        goodput = f"goodput {rate_text(median_of_runs(results, 'goodput_rps'))} req/s"
        lost = sum(r["requests"]["failed"] + r["requests"]["rejected"] for r in results)
        name = tag("i", "", class_="dot", style=f"background:{group.colour}") + escape(group.name)
        runs = "1 run" if len(results) == 1 else f"median of {len(results)} runs"
        drawn.append(
            tag("div", tag("small", name) + tag("b", attained) + tag("span", f"SLO attainment, {runs}")
                + tag("span", f"{goodput}; {lost:,} failed or rejected in all"), class_="card")
        )  # fmt: skip
    return tag("div", "".join(drawn), class_="cards")


def latency_table(result: Result) -> str:
    head = ["ms", *(name for _, name in STATISTICS), "n"]
    body = []
    for latency in LATENCIES:
        found = result.get(latency.key) or {}
        few = 0 < found.get("n", 0) < ENOUGH_FOR_P99
        cells = [_milliseconds(found.get(key)) + ("*" if few and key == "p99" else "") for key, _ in STATISTICS]
        body.append([_capital(latency.short), *cells, f"{found.get('n', 0):,}"])
    return table(head, body)


def run_table(groups: list[Group]) -> str:
    """All runs one by one, so that one that stands apart is seen."""
    head = ["run", "valid", "completed", "failed", "rejected", "attainment", "TTFT P50 / P99", "ITL P50 / P99", "tok/s"]
    body = []
    for group in groups:
        dot = tag("i", "", class_="dot", style=f"background:{group.colour}")
        for number, entry in enumerate(group.entries, 1):
            r, requests = entry.result, entry.result["requests"]
            valid = tag("span", "valid", class_="met") if r["valid"] else tag("span", "INVALID", class_="missed")
            counts = [f"{requests[key]:,}" for key in ("completed", "failed", "rejected")]
            pairs = [f"{time_text(r[key]['p50'])} / {time_text(r[key]['p99'])}" for key in ("ttft_s", "itl_s")]
            body.append(
                [f"{dot}{escape(group.name)} {number}", valid, *counts, percent_text(r["attainment"]), *pairs,
                 rate_text(r["output_tokens_per_s"])]
            )  # fmt: skip
    return table(head, body, class_="stacked")


def ratio_table(comparison: dict[str, Any]) -> str:
    names = list(comparison["targets"])
    head = [
        "median over runs",
        *(escape(name) for name in names),
        *(f"{escape(p)} [95 %]" for p in comparison["ratios"]),
    ]
    body = []
    for key in compared_rows(comparison):
        medians = [shown(key, median_of_runs(comparison["targets"][name], key)) for name in names]
        body.append(
            [
                escape(_capital(title_of(key))),
                *medians,
                *(_ratio(key, r.get(key)) for r in comparison["ratios"].values()),
            ]
        )
    return table(head, body, class_="stacked")


def splitwise_table(splitwise: dict[str, Any]) -> str:
    """Slowdown against an idle system, and its limit."""
    rows = splitwise_rows(splitwise)
    quantiles = list(dict.fromkeys(quantile for cells in rows.values() for quantile in cells))
    body = [
        [escape(name.upper()), *(_splitwise_cell(cells.get(quantile)) for quantile in quantiles)]
        for name, cells in rows.items()
    ]
    return table(["slowdown / limit", *(escape(quantile.upper()) for quantile in quantiles)], body)


def error_table(entries: list[Entry]) -> str:
    counts: dict[str, int] = {}
    for entry in entries:
        for message, count in (entry.result.get("errors") or {}).items():
            counts[message] = counts.get(message, 0) + count
    body = [[escape(message), f"{count:,}"] for message, count in sorted(counts.items(), key=lambda item: -item[1])]
    return table(["error", "requests"], body) if body else ""


def definitions() -> str:
    words = [(latency.short, latency.meaning) for latency in LATENCIES] + [(rate.title, rate.meaning) for rate in RATES]
    return facts((_capital(name), escape(f"{_capital(meaning)}.")) for name, meaning in words)


def _latency_card(short: str, found: Result) -> str:
    few = "*" if 0 < found["n"] < ENOUGH_FOR_P99 else ""
    return _card(_capital(short), time_text(found["p50"]), f"median; P99 {time_text(found['p99'])}{few}")


def _card(name: str, value: str, more: str) -> str:
    return tag("div", tag("small", escape(name)) + tag("b", escape(value)) + tag("span", escape(more)), class_="card")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(key: str, ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return MISSING
    return tag("span", escape(ratio_text(key, ratio)), class_=verdict(key, ratio))


def _splitwise_cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return MISSING
    word, kind = ("met", "met") if cell["met"] else ("missed", "missed")
    return f"{splitwise_value(cell)} / {cell['limit']:.3g} {tag('span', word, class_=kind)}"
