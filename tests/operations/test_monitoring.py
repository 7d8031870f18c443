"""The pages and files for monitoring name the metrics that exist, and no others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric

import app.telemetry.metrics  # noqa: F401  (registers the metrics)
from app.domain.jobs.states import Reason
from app.telemetry.exposition import DiskMetrics
from tests.worker.node.test_device import OUTPUT
from worker.deliveries.sender import DeliverySender
from worker.jobs.lease import LEASE_LOST, begin_metrics
from worker.node import device
from worker.node.device import GpuMetrics
from worker.node.resources import Resources
from worker.reconciler.service_metrics import ServiceMetrics
from worker.webhooks.sender import WebhookSender

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operate"
METRIC_ROW = re.compile(r"^\| `(tunery_\w+)` \|(.*?)\| .+ \|$", re.M)


@pytest.fixture
def families(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> list[Metric]:
    """The families of all processes."""
    monkeypatch.setattr(device, "visible_gpus", lambda gpus: gpus)
    service = ServiceMetrics(resources)
    service.read_if_due()
    gpus = GpuMetrics(("printf", "%s", OUTPUT))
    gpus.join()
    own = [family for family in REGISTRY.collect() if family.name.startswith("tunery_")]
    return [*own, *service.collect(), *gpus.collect(), *DiskMetrics(resources.settings.data_dir).collect()]


def exposed_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_the_page_lists_every_metric(families: list[Metric]) -> None:
    page = (OPERATIONS / "monitoring.md").read_text(encoding="utf-8")
    listed = [name for name, _ in METRIC_ROW.findall(page)]
    assert len(listed) == len(set(listed))
    assert set(listed) | {"tunery_build_info"} == {exposed_name(family) for family in families}


def expressions() -> dict[str, str]:
    """The PromQL of the dashboard and of the alerts, by panel or alert."""
    dashboard = json.loads((OPERATIONS / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    return panels | {rule["alert"]: rule["expr"] for rule in alert_rules()}


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OPERATIONS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_dashboard_and_alerts_use_metrics_that_exist(families: list[Metric]) -> None:
    names = {exposed_name(family) for family in families}
    names |= {
        f"{family.name}_{part}" for family in families if family.type == "histogram" for part in ("bucket", "count")
    }
    used = {name for expression in expressions().values() for name in re.findall(r"\btunery_\w+", expression)}
    assert used - names == set()


def test_dashboard_and_alerts_select_and_group_by_labels_that_exist() -> None:
    page = (OPERATIONS / "monitoring.md").read_text(encoding="utf-8")
    labels = {name: set(re.findall(r"`(\w+)`", text)) for name, text in METRIC_ROW.findall(page)}
    wrong = [
        (subject, name, label)
        for subject, expression in expressions().items()
        for name, selector in re.findall(r"\b(tunery_\w+?)(?:_bucket|_count)?\{(.*?)\}", expression)
        for label in re.findall(r"(\w+)\s*[=!]", selector)
        if label not in labels[name]
    ]
    assert wrong == []


def test_dashboard_and_alerts_name_reasons_that_exist() -> None:
    reasons = {reason.value for reason in Reason} | {LEASE_LOST}
    named = {
        reason
        for expression in expressions().values()
        for text in re.findall(r'reason[=!]~"(.*?)"', expression)
        for reason in text.split("|")
    }
    assert named
    assert named - reasons == set()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("attempts_ended_total", {"kind": "train", "reason": "trainer_crashed"}),
        ("lease_renewals_total", {"outcome": "failed"}),
        ("leases_lost_total", {"cause": "self_fenced"}),
        ("plan_ratio_count", {"quantity": "memory"}),
        ("delivery_attempts_total", {"kind": "vllm", "outcome": "failed"}),
        ("webhook_attempts_total", {"outcome": "failed"}),
        ("hints_sent_total", {"queue": "gpu", "outcome": "failed"}),
    ],
)
def test_counters_exist_before_their_first_event(resources: Resources, name: str, labels: dict[str, str]) -> None:
    """Prometheus sees no increase of a series that begins with 1."""
    begin_metrics()
    DeliverySender(resources)
    WebhookSender(resources)
    assert REGISTRY.get_sample_value(f"tunery_{name}", labels) is not None


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    names = [rule["alert"] for rule in alert_rules()]
    assert [rule["annotations"]["runbook"] for rule in alert_rules()] == [
        f"docs/operate/runbooks.md#{name.lower()}" for name in names
    ]
    assert re.findall(r"^## (\w+)$", (OPERATIONS / "runbooks.md").read_text(), re.MULTILINE) == names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package promtool)")
class TestPromtool:
    def test_the_rules_and_the_expressions_of_the_dashboard_are_valid(self, tmp_path: Path) -> None:
        rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions().values())]
        (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        for path in (OPERATIONS / "alerts.yml", tmp_path / "panels.yml"):
            done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

    def test_the_alerts_fire_for_planted_faults_and_not_for_a_healthy_service(self) -> None:
        done = subprocess.run(
            ["promtool", "test", "rules", ROOT / "tests/operations/alerts_test.yml"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_exposed_text_is_what_prometheus_reads(self, families: list[Metric]) -> None:
        text = generate_latest(REGISTRY)
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        assert b"error while linting" not in done.stderr + done.stdout, done.stderr
