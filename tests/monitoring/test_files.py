# SPDX-License-Identifier: Apache-2.0
"""The files of ``deploy/monitoring`` are fresh and valid, and work with a real Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mailproxy_monitoring.generated_files import generated_files

from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, inject
from support.helm_schemas import schema_errors
from support.needs import Needs
from support.operator_bodies import body
from support.prometheus_world.places import Places
from support.prometheus_world.watcher import watch
from support.servers.programs import Ports, eventually, run_program
from support.sidecars import pod

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
CRD = MONITORING.parent / "crd.yaml"

# The meta labels of Prometheus' service discovery for a pod of the MailProxy "edge" in namespace "mail".
POD = {
    "__meta_kubernetes_namespace": "mail",
    "__meta_kubernetes_pod_name": "edge-0",
    "__meta_kubernetes_pod_container_port_name": "admin",
    "__meta_kubernetes_pod_label_mailproxy_dev_proxy": "edge",
    "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
    # In a sidecar's pod, this may be the path of the application.
    "__meta_kubernetes_pod_annotation_prometheus_io_path": "/elsewhere",
}


def _read(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text())


@pytest.mark.parametrize("path", generated_files(), ids=lambda path: f"{path.parent.parent.name}/{path.name}")
def test_generated_files_are_fresh(path: Path) -> None:
    assert path.read_text() == generated_files()[path], "run: make generate"


@pytest.mark.parametrize(
    "path", sorted((MONITORING / "dashboards").glob("*.json")), ids=lambda path: path.stem
)
def test_dashboard_panels_do_not_overlap(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & covered
        covered |= cells
        assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"])


@pytest.mark.interop
@pytest.mark.parametrize("name", ["rules/mailproxy.yaml", "rules/operator.yaml"])
def test_promtool_accepts_the_rules(needs: Needs, name: str) -> None:
    assert "SUCCESS" in run_program([needs("promtool"), "check", "rules", str(MONITORING / name)])


@pytest.mark.interop
def test_promtool_accepts_the_static_configuration(needs: Needs) -> None:
    output = run_program([needs("promtool"), "check", "config", str(MONITORING / "scrape/static.yaml")])
    assert "FAILED" not in output
    assert "is valid prometheus config file syntax" in output


@pytest.mark.interop
def test_annotated_pods_are_discovered_with_their_labels(needs: Needs, busy: Places, tmp_path: Path) -> None:
    """From its meta labels, a target gets the labels that dashboards and alerts need."""
    [scrape] = _read("scrape/annotations.yaml")["scrape_configs"]
    del scrape["kubernetes_sd_configs"]  # Prometheus may be built without Kubernetes
    admin = busy.proxies[0].admin
    unwanted = [
        {**POD, "__meta_kubernetes_pod_container_port_name": "imap-143"},
        {**POD, "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "false"},
    ]
    scrape["static_configs"] = [{"targets": [admin], "labels": labels} for labels in (POD, *unwanted)]
    watcher = watch(needs("prometheus"), tmp_path, Ports().take(), [scrape])
    try:
        [found] = eventually(lambda: watcher.now("mailproxy_config_last_reload_successful"), "a scrape")
        assert found["metric"] | {"__name__": ""} == {
            "__name__": "",
            "instance": admin,
            "job": "mail/edge",
            "mailproxy": "edge",
            "namespace": "mail",
            "pod": "edge-0",
        }
    finally:
        watcher.running.stop()


def test_pod_monitor_for_all_proxies_sets_the_same_job() -> None:
    monitor = _read("scrape/podmonitor.yaml")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [scrape] = _read("scrape/annotations.yaml")["scrape_configs"]
    wanted = [one for one in scrape["relabel_configs"] if one.get("target_label") in {"job", "mailproxy"}]
    assert [_snake(one) for one in endpoint.pop("relabelings")] == wanted
    monitor["spec"].pop("namespaceSelector")
    assert schema_errors(monitor, "1.36") == []


def _snake(relabeling: dict[str, Any]) -> dict[str, Any]:
    """Convert a relabeling of a PodMonitor to that of a Prometheus configuration."""
    return {re.sub("[A-Z]", lambda one: f"_{one[0].lower()}", key): it for key, it in relabeling.items()}


def test_every_proxy_pod_has_the_label_of_the_scrape_files() -> None:
    """In every mode, including sidecars."""
    [scrape] = _read("scrape/annotations.yaml")["scrape_configs"]
    [selector] = scrape["kubernetes_sd_configs"][0]["selectors"]
    [expression] = _read("scrape/podmonitor.yaml")["spec"]["selector"]["matchExpressions"]
    assert expression == {"key": selector["label"], "operator": "Exists"}
    monitoring = {"podMonitor": {"enabled": True}}
    for mode in ("Deployment", "DaemonSet", "Sidecar"):
        resource = body(mode=mode, monitoring=monitoring)
        objects = render(planned(Resource.read(resource), Platform()))
        [monitor] = [one for one in objects if one["kind"] == "PodMonitor"]
        labels = _pod_labels(resource, objects)
        assert selector["label"] in labels
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def _pod_labels(resource: Any, objects: Any) -> dict[str, str]:
    workloads = [one for one in objects if one["kind"] in {"Deployment", "DaemonSet"}]
    if workloads:
        found: dict[str, str] = workloads[0]["spec"]["template"]["metadata"]["labels"]
        return found
    injected = inject(sidecar(planned(Resource.read(resource), Platform())), pod())
    assert isinstance(injected, Injected)
    return dict(injected.pod["metadata"]["labels"])


LATE = {
    "mailproxy_group_members",
    "mailproxy_group_logins_total",
    "mailproxy_policy_request_duration_seconds",
    "mailproxy_token_request_duration_seconds",
    "mailproxy_token_expiry_timestamp_seconds",
}
"""Metrics without a series until there was an access token, a policy server or a Service as upstream."""


@pytest.mark.interop
def test_promtool_accepts_the_metrics_of_a_busy_proxy(needs: Needs, busy: Places) -> None:
    promtool, proxy = needs("promtool"), busy.proxies[0]
    for family in ALL_METRICS:
        if family.name in LATE:
            continue
        eventually(lambda name=family.name: f"\n{name}" in proxy.get("/metrics")[1], family.name)  # type: ignore[misc]
    assert run_program([promtool, "check", "metrics"], stdin=proxy.get("/metrics")[1]) == ""


def test_adapter_queries_an_existing_metric() -> None:
    [rule] = _read("prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] in {family.name for family in ALL_METRICS}


def test_kube_state_metrics_reads_existing_fields() -> None:
    [resource] = _read("kube-state-metrics.yaml")["spec"]["resources"]
    crd = yaml.safe_load(CRD.read_text())["spec"]
    kind = resource["groupVersionKind"]
    assert (kind["group"], kind["kind"]) == (crd["group"], crd["names"]["kind"])
    [version] = [one for one in crd["versions"] if one["name"] == kind["version"]]
    root = version["schema"]["openAPIV3Schema"]["properties"]
    for metric in resource["metrics"]:
        each = metric["each"].get("gauge") or metric["each"]["info"]
        if each["path"] == ["metadata"]:
            continue
        schema = root["status"]["properties"]
        for step in each["path"][1:]:
            schema = schema[step]["items"]["properties"]
        labels = [path[0] for path in each.get("labelsFromPath", {}).values()]
        assert {*labels, *each.get("valueFrom", [])} <= schema.keys(), metric["name"]
