"""What Prometheus and Grafana are given in deploy/observe asks only for what a gateway exports, and fits together."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.events import Outcome
from services.gateway.mesh import Mesh
from services.gateway.metrics import Metrics
from shared.ids import EntryId
from shared.wire.terms import Role
from tests.support.samples import report

ROOT = Path(__file__).parents[2]
OBSERVE = ROOT / "deploy" / "observe"
CONFIG = yaml.safe_load((OBSERVE / "prometheus.yaml").read_text())
RULES = [r for g in yaml.safe_load((OBSERVE / "rules.yaml").read_text())["groups"] for r in g["rules"]]
DATASOURCE = yaml.safe_load((OBSERVE / "grafana" / "datasource.yaml").read_text())["datasources"][0]
PROVIDER = yaml.safe_load((OBSERVE / "grafana" / "dashboards.yaml").read_text())["providers"][0]
DASHBOARD = json.loads((OBSERVE / "grafana" / "splitmesh.json").read_text())
PANELS = DASHBOARD["panels"]

OF_A_TARGET = {"job", "instance"}
OF_PROMETHEUS = {"up": OF_A_TARGET, "ALERTS": {"alertname", "alertstate", "severity"}}
VALUES = {
    "outcome": {outcome.value for outcome in Outcome},
    "from": {role.value for role in Role},
    "to": {role.value for role in Role},
    "job": {job["job_name"] for job in CONFIG["scrape_configs"]},
}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w$:])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\()?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
OPERATORS = {"and", "or", "unless", "offset", "bool"}


def exported() -> dict[str, set[str]]:
    """Every series that a gateway with one worker exports, and its labels."""
    mesh = Mesh("bytes")
    mesh.view.apply(report("token.1"), EntryId("1-0"), 0.0)
    metrics = Metrics(mesh)
    metrics.requests.labels(outcome="completed")
    metrics.role_changes.labels("prompt", "token")
    families = text_string_to_metric_families(metrics.text().decode())
    return {s.name: OF_A_TARGET | set(s.labels) for family in families for s in family.samples}


KNOWN = exported() | OF_PROMETHEUS


def selected(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The metrics of a PromQL expression, each with its label matchers; functions and keywords are none."""
    bare = re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", expression))
    for found in SELECTOR.finditer(re.sub(r'"[^"]*"(?![^{]*\})', "", bare)):
        name, tail = found[1], found[2] or ""
        if tail != "(" and name not in OPERATORS:
            yield name, MATCHER.findall(tail)


def labels_of(expression: str) -> set[str]:
    return {label for name, _ in selected(expression) for label in KNOWN.get(name, set())}


def faults(expression: str) -> list[str]:
    """What an expression asks for that nobody exports."""
    found = []
    for name, matchers in selected(expression):
        if name not in KNOWN:
            found.append(f"no metric {name}")
            continue
        found += [f"{name} has no label {label}" for label, _ in matchers if label not in KNOWN[name]]
        found += [
            f"{label} is never {value}"
            for label, values in matchers
            for value in values.split("|")
            if value not in VALUES.get(label, {value})
        ]
    grouped = {label for labels in GROUPING.findall(expression) for label in re.findall(r"\w+", labels)}
    return [*found, *(f"no label {label}" for label in sorted(grouped - labels_of(expression)))]


def targets() -> Iterator[dict[str, Any]]:
    return (target for panel in PANELS for target in panel["targets"])


def expressions() -> list[str]:
    return [*(rule["expr"] for rule in RULES), *(target["expr"] for target in targets())]


def overlapping(panels: Iterable[dict[str, Any]]) -> list[str]:
    """Titles of the panels that take a place that is taken, or is none of the 24 columns."""
    taken: set[tuple[int, int]] = set()
    wrong = []
    for panel in panels:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        if cells & taken or x + w > 24:
            wrong.append(panel["title"])
        taken |= cells
    return wrong


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_what_is_exported(expression: str) -> None:
    assert list(selected(expression)), "it asks for nothing at all"
    assert faults(expression) == []


@pytest.mark.parametrize(
    "expression",
    [
        "sum(rate(splitmesh_nothing_total[1m]))",
        "splitmesh_time_to_first_token_seconds > 1",
        'splitmesh_requests_total{worker="token.1"}',
        'splitmesh_requests_total{outcome=~"failed|lost"}',
        "sum by (outcome) (splitmesh_kv_blocks_total)",
        "up == 1 unless on (worker) splitmesh_gateway_event_loop_lag_seconds",
        'up{job="nobody"}',
        "max_over_time(count(splitmesh_workers)[10m:5s])",
    ],
)
def test_what_is_not_exported_is_found(expression: str) -> None:
    assert len(faults(expression)) == 1


def test_legends_and_annotations_name_labels_of_their_expression() -> None:
    said = [(target["expr"], target.get("legendFormat", "")) for target in targets()]
    named = [(e, label) for e, text in said for label in re.findall(r"\{\{(\w+)\}\}", text)]
    wrong = [(e, label) for e, label in named if label not in labels_of(e)]
    for rule in RULES:
        inside = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        wrong += [(rule["alert"], label) for label in inside if label not in labels_of(rule["expr"])]
    assert wrong == []


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) > 0
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert all(rule["annotations"].get(text) for text in ("summary", "description")), rule["alert"]


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids)) > 0
    assert overlapping(PANELS) == []
    assert overlapping([*PANELS, PANELS[0]]) == [PANELS[0]["title"]]
    for panel in PANELS:
        queries = [target["refId"] for target in panel["targets"]]
        assert len(queries) == len(set(queries)) > 0, panel["title"]


def test_panels_ask_the_datasource_of_the_variable() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", DATASOURCE["type"])
    assert variable["current"] == {"text": DATASOURCE["name"], "value": DATASOURCE["uid"]}
    asked = [panel["datasource"] for panel in PANELS]
    assert asked == [{"type": "prometheus", "uid": f"${{{variable['name']}}}"}] * len(PANELS)


def test_prometheus_scrapes_every_gateway_and_nothing_else_is_reached() -> None:
    (job,) = CONFIG["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert (found["names"], found["type"], found["port"]) == (["gateway"], "A", 8000)
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert all((OBSERVE / file).is_file() for file in CONFIG["rule_files"])
    assert CONFIG["global"]["scrape_interval"] == DATASOURCE["jsonData"]["timeInterval"]
    text = "".join(file.read_text() for file in OBSERVE.rglob("*") if file.is_file())
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://prometheus:9090"}


def test_compose_mounts_every_file_where_it_is_looked_for() -> None:
    mounts = dict(re.findall(r"\./(deploy/observe/\S+?):(\S+?):ro", (ROOT / "compose.yaml").read_text()))
    assert set(mounts) == {str(file.relative_to(ROOT)) for file in OBSERVE.rglob("*") if file.is_file()}
    assert Path(mounts["deploy/observe/grafana/splitmesh.json"]).parent == Path(PROVIDER["options"]["path"])
