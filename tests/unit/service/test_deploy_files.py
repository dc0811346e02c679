"""Claims about deploy/ and docker-compose.yml: what they say of the service is true of it.

A dashboard or an alert with a misspelt metric fails silently: it stays empty, or never fires. Only names, syntax and
structure are checked here; what the numbers mean is not.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from service.metrics import METRIC_NAMES
from service.settings import Settings

ROOT = Path(__file__).parents[3]
DASHBOARD_FILES = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
ALERTS_FILE = ROOT / "deploy/prometheus/alerts.yml"
OF_PROMETHEUS_ITSELF = {"up"}
# Grafana replaces these before Prometheus sees the query.
VARIABLES = {"$__rate_interval": "1m", "$model": "m", "$replica": "0"}


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Returns the panels that show something: rows only give them a heading."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(ALERTS_FILE)["groups"] for rule in group["rules"]]


def panel_queries() -> list[Any]:
    """Returns each query of each panel as a pytest parameter."""
    return [
        pytest.param(target["expr"], id=f"{dashboard.stem}/{panel['title']}/{target['refId']}")
        for dashboard in DASHBOARD_FILES
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def alert_queries() -> list[Any]:
    """Returns each alert's expression as a pytest parameter."""
    return [pytest.param(alert["expr"], id=alert["alert"]) for alert in alerts()]


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Returns every selector of a query. Raises ValueError when the query is not PromQL."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def exported_series() -> frozenset[str]:
    """Returns the series that the service's metrics become: every metric in seconds is a histogram, hence three."""
    histograms = {name for name in METRIC_NAMES if name.endswith("_seconds")}
    parts = {name + part for name in histograms for part in ("_bucket", "_sum", "_count")}
    return (METRIC_NAMES - histograms) | parts


@pytest.mark.parametrize("query", panel_queries() + alert_queries())
def test_a_query_uses_only_series_that_exist(query: str) -> None:
    """Every selector names a series of the service, or one that Prometheus makes itself."""
    names = {selector.name for selector in selectors(query)}
    assert names
    assert names <= exported_series() | OF_PROMETHEUS_ITSELF


@pytest.mark.parametrize("query", panel_queries())
def test_a_panel_follows_the_variables(query: str) -> None:
    """Choosing a model or a replica changes every panel: one that ignored the choice would mislead."""
    for selector in selectors(query):
        values = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        assert values.get("model") == VARIABLES["$model"]
        assert values.get("replica") == VARIABLES["$replica"]


@pytest.mark.parametrize("dashboard", DASHBOARD_FILES, ids=lambda path: path.stem)
def test_a_panel_explains_itself(dashboard: Path) -> None:
    """Every panel has a title of its own, a description and a unit."""
    shown = panels(dashboard)
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_an_alert_says_how_bad_and_what() -> None:
    """Every alert has a severity to route by, and a summary and a description to act on."""
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}, alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]


def seconds(duration: str) -> int:
    """A duration of Prometheus's with one unit."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


@pytest.mark.parametrize("alert", [pytest.param(alert, id=alert["alert"]) for alert in alerts()])
def test_an_alert_on_an_increase_waits_for_less_than_it_looks_back(alert: dict[str, Any]) -> None:
    """What fails in one moment is seen for as long as the range: a wait of that length would never end."""
    ranges = [seconds(found) for found in re.findall(r"increase\([^[]*\[(\d+[sm])\]", alert["expr"])]
    assert all(2 * seconds(alert.get("for", "0s")) < looked_back for looked_back in ranges)


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    """Prometheus's own tests of the rules, where its tool is installed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; on Debian: make test-tools")
    tests = ALERTS_FILE.with_name("alerts_test.yml")
    done = subprocess.run([promtool, "test", "rules", tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_loads_the_alerts() -> None:
    """The rule files of the configuration are the ones checked here."""
    assert load_yaml(ROOT / "deploy/prometheus/prometheus.yml")["rule_files"] == [ALERTS_FILE.name]


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """Grafana derives its rate windows from the interval in its datasource: a shorter one would leave gaps."""
    (source,) = load_yaml(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (job,) = load_yaml(ROOT / "deploy/prometheus/prometheus.yml")["scrape_configs"]
    assert source["jsonData"]["timeInterval"] == job["scrape_interval"]


def test_the_container_outlives_its_drain() -> None:
    """The engine kills a container only after the service has had the time that it takes to drain."""
    service = load_yaml(ROOT / "docker-compose.yml")["services"]["attend"]
    settings = Settings(drain_timeout_s=service["environment"]["ATTEND_DRAIN_TIMEOUT_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_timeout_s


def test_no_port_is_published_beyond_the_loopback() -> None:
    """None of the services asks for a password, so none may be reached from another machine by default."""
    for name, service in load_yaml(ROOT / "docker-compose.yml")["services"].items():
        assert service["ports"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
