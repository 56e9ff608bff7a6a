# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes part of a manifest: how the proxy is deployed.

The defaults are those of the custom resource.  Values that are passed to Kubernetes
unchanged (affinity, tolerations, ...) are plain mappings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.model import DrainConfig, Seconds
from mailproxy_config.value_types import ErrorPath

_DRAIN: Final = DrainConfig(delay=Seconds(5.0), timeout=Seconds(300.0))
_REQUESTS: Final = {"cpu": "100m", "memory": "64Mi"}


class Mode(StrEnum):
    """The kind of workload that runs the proxy."""

    DEPLOYMENT = "Deployment"
    DAEMON_SET = "DaemonSet"
    SIDECAR = "Sidecar"


class SidecarFailure(StrEnum):
    """What happens to a pod that requests a sidecar and cannot get it."""

    IGNORE = "Ignore"
    FAIL = "Fail"


class PortStrategy(StrEnum):
    """``Direct``: container ports are listen ports; ``HighPort``: 10000 is added to them."""

    DIRECT = "Direct"
    HIGH_PORT = "HighPort"


class SysctlMode(StrEnum):
    """Whether sysctls are derived from the listeners."""

    AUTO = "Auto"
    NONE = "None"


class UnsafeSysctls(StrEnum):
    """Whether sysctls outside the kubelet's safe set are allowed."""

    FORBID = "Forbid"
    ALLOW = "Allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """A HorizontalPodAutoscaler; ``None`` leaves a field out."""

    max_replicas: int
    min_replicas: int | None = None
    target_cpu_utilization_percentage: int | None = None
    target_connections_per_pod: int | None = None
    behavior: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """The Service for the mail ports; ``None`` leaves a field to Kubernetes."""

    type: str = "ClusterIP"
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    ip_family_policy: str = "PreferDualStack"
    ip_families: tuple[str, ...] = ()
    load_balancer_class: str | None = None
    load_balancer_source_ranges: tuple[str, ...] = ()
    node_ports: tuple[Mapping[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """One sysctl of the pod."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlsSpec:
    """The sysctls of the pods."""

    mode: SysctlMode = SysctlMode.AUTO
    unsafe: UnsafeSysctls = UnsafeSysctls.FORBID
    extra: tuple[Sysctl, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMonitorSpec:
    """A PodMonitor of the Prometheus operator."""

    enabled: bool = False
    interval: str = "30s"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusRuleSpec:
    """A PrometheusRule of the Prometheus operator."""

    enabled: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSpec:
    """Objects and annotations with which Prometheus discovers the pods."""

    pod_monitor: PodMonitorSpec = PodMonitorSpec()
    prometheus_rule: PrometheusRuleSpec = PrometheusRuleSpec()
    scrape_annotations: bool | None = None

    @property
    def is_annotated(self) -> bool:
        """Whether pods have the prometheus.io annotations; by default not together with a PodMonitor."""
        return not self.pod_monitor.enabled if self.scrape_annotations is None else self.scrape_annotations


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDisruptionBudgetSpec:
    """Exactly one of the two is set."""

    min_available: int | str | None = None
    max_unavailable: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicySpec:
    """A NetworkPolicy; the peers are passed to Kubernetes unchanged."""

    enabled: bool = False
    metrics_from: tuple[Mapping[str, Any], ...] = ()
    clients_from: tuple[Mapping[str, Any], ...] = ()
    egress: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """Additional fields of the pods; passed to Kubernetes unchanged."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    topology_spread_constraints: tuple[Mapping[str, Any], ...] | None = None
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    service_account_name: str | None = None
    host_network: bool = False
    host_users: bool | None = None
    dns_policy: str | None = None
    dns_config: Mapping[str, Any] = field(default_factory=dict)
    host_aliases: tuple[Mapping[str, Any], ...] = ()
    security_context: Mapping[str, Any] = field(default_factory=dict)
    extra_volumes: tuple[Mapping[str, Any], ...] = ()
    extra_volume_mounts: tuple[Mapping[str, Any], ...] = ()
    extra_env: tuple[Mapping[str, Any], ...] = ()
    extra_containers: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesSpec:
    """Quantities in the notation of Kubernetes."""

    requests: Mapping[str, int | str] = field(default_factory=lambda: dict(_REQUESTS))
    limits: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequirement:
    """One of the ``matchExpressions`` of a selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """Selects pods by their labels; an empty one selects all."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return self.match_labels.items() <= labels.items() and all(
            _meets(labels, one) for one in self.match_expressions
        )


def _meets(labels: Mapping[str, str], requirement: LabelRequirement) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case _:
            return requirement.key not in labels


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarSpec:
    """The pods that may get the sidecar."""

    selector: LabelSelector = LabelSelector()
    failure_policy: SidecarFailure = SidecarFailure.IGNORE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """The Kubernetes part of a ``MailProxy``.

    Attributes:
        image: Empty: the image of the operator's settings.
        host_ports: ``listen[].hostPort`` by listen port.
    """

    mode: Mode = Mode.DEPLOYMENT
    replicas: int = 2
    autoscaling: Autoscaling | None = None
    image: str = ""
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    service: ServiceSpec = ServiceSpec()
    port_strategy: PortStrategy = PortStrategy.DIRECT
    sysctls: SysctlsSpec = SysctlsSpec()
    drain: DrainConfig = _DRAIN
    monitoring: MonitoringSpec = MonitoringSpec()
    pod_disruption_budget: PodDisruptionBudgetSpec = PodDisruptionBudgetSpec(max_unavailable=1)
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    pod: PodSpec = PodSpec()
    sidecar: SidecarSpec = SidecarSpec()
    paused: bool = False
    host_ports: Mapping[int, int] = field(default_factory=dict)


_SPECIAL: Final = {
    "autoscaling": Autoscaling,
    "service": ServiceSpec,
    "networkPolicy": NetworkPolicySpec,
    "pod": PodSpec,
}
_PLAIN: Final = {
    "replicas": "replicas",
    "image": "image",
    "imagePullPolicy": "image_pull_policy",
    "paused": "paused",
}


def snake_case(name: str) -> str:
    """``hostNetwork`` is ``host_network``; CPU in ``targetCPUUtilizationPercentage`` is one word."""
    name = name.replace("CPU", "Cpu")
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")


def read_deployment(spec: Mapping[str, Any], path: ErrorPath) -> DeploymentSpec:
    """Read the Kubernetes part of a ``spec`` that matches its schema.

    Args:
        spec: The whole ``spec``; its mail part is ignored.
        path: The path of the spec.
    """
    found: dict[str, Any] = {name: spec[raw] for raw, name in _PLAIN.items() if raw in spec}
    found |= {snake_case(raw): _of(kind, spec[raw]) for raw, kind in _SPECIAL.items() if raw in spec}
    found |= {"mode": Mode(spec["mode"])} if "mode" in spec else {}
    found |= {"port_strategy": PortStrategy(spec["portStrategy"])} if "portStrategy" in spec else {}
    found |= {"drain": _drain(spec["drain"], path.field("drain"))} if "drain" in spec else {}
    found |= {"sysctls": _sysctls(spec["sysctls"])} if "sysctls" in spec else {}
    found |= {"monitoring": _monitoring(spec["monitoring"])} if "monitoring" in spec else {}
    if spec.get("podDisruptionBudget"):
        found["pod_disruption_budget"] = _of(PodDisruptionBudgetSpec, spec["podDisruptionBudget"])
    if "sidecar" in spec:
        found["sidecar"] = _sidecar(spec["sidecar"])
    if "resources" in spec:
        # The default requests could exceed the given limits.
        found["resources"] = ResourcesSpec(**{"requests": {}, **spec["resources"]})
    if "imagePullSecrets" in spec:
        found["image_pull_secrets"] = tuple(secret["name"] for secret in spec["imagePullSecrets"])
    return DeploymentSpec(**found)


def _of(kind: type[Any], value: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- an instance of ``kind``
    """Build a dataclass whose fields have the names of the manifest in snake case; lists become tuples."""
    return kind(
        **{
            snake_case(name): tuple(inner) if isinstance(inner, list) else inner
            for name, inner in value.items()
        }
    )


def _drain(value: Mapping[str, Any], path: ErrorPath) -> DrainConfig:
    times = {
        name: path.field(name).try_read(lambda name=name: units.parse_msec_time(value[name]), Seconds(0.0))  # type: ignore[misc]
        for name in ("delay", "timeout")
        if name in value
    }
    return DrainConfig(delay=times.get("delay", _DRAIN.delay), timeout=times.get("timeout", _DRAIN.timeout))


def _sysctls(value: Mapping[str, Any]) -> SysctlsSpec:
    return SysctlsSpec(
        mode=SysctlMode(value.get("mode", "Auto")),
        unsafe=UnsafeSysctls(value.get("unsafe", "Forbid")),
        extra=tuple(Sysctl(name=item["name"], value=item["value"]) for item in value.get("extra", ())),
    )


def _sidecar(value: Mapping[str, Any]) -> SidecarSpec:
    selector = value.get("selector", {})
    return SidecarSpec(
        selector=LabelSelector(
            match_labels=selector.get("matchLabels", {}),
            match_expressions=tuple(
                LabelRequirement(
                    key=one["key"], operator=one["operator"], values=tuple(one.get("values", ()))
                )
                for one in selector.get("matchExpressions", ())
            ),
        ),
        failure_policy=SidecarFailure(value.get("failurePolicy", "Ignore")),
    )


def _monitoring(value: Mapping[str, Any]) -> MonitoringSpec:
    return MonitoringSpec(
        pod_monitor=_of(PodMonitorSpec, value.get("podMonitor", {})),
        prometheus_rule=_of(PrometheusRuleSpec, value.get("prometheusRule", {})),
        scrape_annotations=value.get("scrapeAnnotations"),
    )
