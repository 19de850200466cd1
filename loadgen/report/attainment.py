"""How much of the traffic met its SLO: over the rate offered where rates were tried, else over scaled limits."""

from dataclasses import replace

import numpy as np

from loadgen.measure.latencies import Measured
from loadgen.measure.slo import Slo, attainment, good, judge
from loadgen.report.groups import Group
from loadgen.report.look import Figure, Trace, axis, digits, layout, limit_line, line

MARKS = (90.0, 99.0)  # %
SCALES, SCALE_POINTS = (0.25, 4.0), 61


def attainment_figures(groups: list[Group], slo: Slo | None) -> list[Figure]:
    """`slo`: of all runs, scaled where records are at hand."""
    figures = [_over_rate(groups), *([] if slo is None else [_over_scale(groups, slo)]), _each(groups)]
    return [figure for figure in figures if figure.data]


def scaled_attainment(tables: list[Measured], slo: Slo, scale: float) -> float:
    """The mean over runs (%) of the share of requests that meets every limit times `scale`."""
    eased = replace(slo, limits=tuple((key, limit_s * scale) for key, limit_s in slo.limits))
    shares = [attainment(good(judge(table, eased)), table) for table in tables]
    known = [share for share in shares if share is not None]
    return _percent(sum(known) / len(known) if known else None)


def _over_rate(groups: list[Group]) -> Figure:
    """One point per rate that a search for the highest rate has tried."""
    data: list[Trace] = []
    for group in groups:
        tries = [t for e in group.entries for t in (e.result.get("goodput_search") or {}).get("tries", [])]
        tries.sort(key=lambda one: float(one["rate_rps"]))
        symbols = ["circle" if one["valid"] else "circle-open" for one in tries]
        if tries:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": group.name,
                    "x": digits(one["rate_rps"] for one in tries),
                    "y": digits(_percent(one["attainment"]) for one in tries),
                    "line": {"color": group.colour, "width": 2},
                    "marker": {"symbol": symbols, "size": 9},
                }
            )
    return Figure(
        name="attainment-rate",
        title="SLO attainment over offered rate",
        caption="Each rate that was tried. Dotted: 90 % and 99 %. Hollow: that run was not valid.",
        data=data,
        layout=layout(
            axis("offered rate (requests per second)", rangemode="tozero"),
            axis("attainment", ticksuffix=" %", range=[0, 104]),
            [limit_line(mark, upright=False) for mark in MARKS],
        ),
    )


def _over_scale(groups: list[Group], slo: Slo) -> Figure:
    """How far from its limits the system is. Slow-downs against an idle system are not scaled."""
    scales = np.geomspace(SCALES[0], SCALES[1], SCALE_POINTS)
    data: list[Trace] = []
    for group in groups if slo.limits and not slo.splitwise else []:
        shares = np.array([scaled_attainment(group.tables, slo, float(scale)) for scale in scales])
        data += [line(group.name, scales, shares, group.colour)] if group.tables else []
    return Figure(
        name="attainment-scale",
        title="SLO attainment over scaled limits",
        caption=f"Every limit of {slo.text} times the same factor; 1 is the SLO as given. Dotted: 90 % and 99 %.",
        data=data,
        layout=layout(
            axis("times the SLO, logarithmic", type="log", tickvals=[0.25, 0.5, 1, 2, 4], ticksuffix=" ×"),
            axis("attainment", ticksuffix=" %", range=[0, 104]),
            [limit_line(mark, upright=False) for mark in MARKS] + [limit_line(1.0, upright=True)],
        )
        | {"showlegend": len(groups) > 1},
    )


def _each(groups: list[Group]) -> Figure:
    """All limits together and each alone: the shortest bar says which limit binds."""
    data: list[Trace] = []
    for group in groups:
        results = [entry.result for entry in group.entries if entry.result.get("attainment") is not None]
        each = [result.get("attainment_each") or {} for result in results]
        names = list(dict.fromkeys(name for shares in each for name in shares))
        bars = {"all together": [result["attainment"] for result in results]}
        bars |= {f"{name} alone": [shares[name] for shares in each if name in shares] for name in names}
        if names:
            data.append(
                {
                    "type": "bar",
                    "name": group.name,
                    "x": list(bars),
                    "y": digits(_percent(float(np.median(shares))) for shares in bars.values()),
                    "marker": {"color": group.colour},
                    "texttemplate": "%{y:.1f} %",
                    "textposition": "outside",
                    "textangle": 0,
                    "cliponaxis": False,
                }
            )
    return Figure(
        name="attainment-each",
        title="SLO attainment by limit",
        caption="Share of all requests scheduled in the window that met all limits, and each limit alone. Median over "
        "runs where there are several.",
        data=data,
        layout=layout(axis(""), axis("attainment", ticksuffix=" %", range=[0, 110])) | {"showlegend": len(groups) > 1},
    )


def _percent(share: float | None) -> float:
    return float("nan") if share is None else share * 100
