# SPDX-License-Identifier: Apache-2.0
"""The files of ``deploy/monitoring``: fresh, valid, and of use to a real Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mailproxy_monitoring.pages import pages

from mailproxy.telemetry.definitions import CATALOGUE
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, inject
from support.helm_schemas import faults
from support.needs import Needs
from support.operator_bodies import body
from support.prometheus_world.places import Places
from support.prometheus_world.watcher import watch
from support.servers.programs import Ports, eventually, output_of
from support.sidecars import pod

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
CRD = MONITORING.parent / "crd.yaml"

# What Kubernetes tells Prometheus about a pod of the MailProxy "edge" in namespace "mail".
POD = {
    "__meta_kubernetes_namespace": "mail",
    "__meta_kubernetes_pod_name": "edge-0",
    "__meta_kubernetes_pod_container_port_name": "admin",
    "__meta_kubernetes_pod_label_mailproxy_dev_proxy": "edge",
    "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
    # A sidecar's pod may have the path of its application here.
    "__meta_kubernetes_pod_annotation_prometheus_io_path": "/elsewhere",
}


def _read(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text())


@pytest.mark.parametrize("path", pages(), ids=lambda path: f"{path.parent.parent.name}/{path.name}")
def test_what_is_generated_is_fresh(path: Path) -> None:
    assert path.read_text() == pages()[path], "run: make generate"


@pytest.mark.parametrize(
    "path", sorted((MONITORING / "dashboards").glob("*.json")), ids=lambda path: path.stem
)
def test_a_dashboard_is_laid_out_without_gaps_and_overlaps(path: Path) -> None:
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
def test_promtool_takes_the_rules(needs: Needs, name: str) -> None:
    assert "SUCCESS" in output_of([needs("promtool"), "check", "rules", str(MONITORING / name)])


@pytest.mark.interop
def test_promtool_takes_the_plain_configuration(needs: Needs) -> None:
    said = output_of([needs("promtool"), "check", "config", str(MONITORING / "scrape/static.yaml")])
    assert "FAILED" not in said
    assert "is valid prometheus config file syntax" in said


@pytest.mark.interop
def test_pods_are_found_by_their_annotations(needs: Needs, busy: Places, tmp_path: Path) -> None:
    """With what Kubernetes says about a pod, the target gets the labels that dashboards and alerts need."""
    [scrape] = _read("scrape/annotations.yaml")["scrape_configs"]
    del scrape["kubernetes_sd_configs"]  # a Prometheus may be built without it
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


def test_the_pod_monitor_for_all_proxies_makes_the_same_job() -> None:
    monitor = _read("scrape/podmonitor.yaml")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [scrape] = _read("scrape/annotations.yaml")["scrape_configs"]
    wanted = [one for one in scrape["relabel_configs"] if one.get("target_label") in {"job", "mailproxy"}]
    assert [_snake(one) for one in endpoint.pop("relabelings")] == wanted
    monitor["spec"].pop("namespaceSelector")
    assert faults(monitor, "1.36") == []


def _snake(relabeling: dict[str, Any]) -> dict[str, Any]:
    """Write a relabeling of a PodMonitor as Prometheus itself has it."""
    return {re.sub("[A-Z]", lambda one: f"_{one[0].lower()}", key): it for key, it in relabeling.items()}


def test_every_pod_of_a_proxy_has_the_label_that_scrape_files_select() -> None:
    """A sidecar's pod as well as those of a workload."""
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


@pytest.mark.interop
def test_the_page_of_a_busy_proxy_is_what_prometheus_likes(needs: Needs, busy: Places) -> None:
    promtool, proxy = needs("promtool"), busy.proxies[0]
    for family in CATALOGUE:
        eventually(lambda name=family.name: f"\n{name}" in proxy.get("/metrics")[1], family.name)  # type: ignore[misc]
    assert output_of([promtool, "check", "metrics"], stdin=proxy.get("/metrics")[1]) == ""


def test_the_adapter_asks_for_what_there_is() -> None:
    [rule] = _read("prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] in {family.name for family in CATALOGUE}


def test_kube_state_metrics_reads_fields_that_the_crd_has() -> None:
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
