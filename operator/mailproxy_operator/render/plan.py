# SPDX-License-Identifier: Apache-2.0
"""The plan of a resource: values that several renderers and the status use, computed once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.model import DrainConfig, ProxyConfig, Seconds
from mailproxy_config.rendered import config_hash, dump
from mailproxy_config.secret_refs import Mounts, Reference
from mailproxy_config.upstream_members import MEMBERS_KEY
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import DAEMON_SET, DEPLOYMENT, Kind
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.members.member_lists import NO_MEMBERS, Members
from mailproxy_operator.render import ports, selected, sysctls
from mailproxy_operator.render.selected import Selection
from mailproxy_operator.settings import Platform

SIDECAR = "Sidecar"
"""The mode in which the pods belong to other workloads."""
SLEEP_ACTION_SINCE = KubeVersion(1, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A resource and all decisions derived from it.

    Attributes:
        config: The configuration of the pods.
        document: The content of ``mailproxy.json``.
        config_hash: The hash of ``config``, which pods report.
        listeners: The listeners in the order of the resource.
        ports: The ports, one per number, sorted.
        sysctls: The decisions about sysctls, sorted by name.
        references: Secrets and ConfigMaps to mount.
        selection: Secrets with certificates that clients choose by name, to mount.
        members: The members of the Services that groups of upstreams are; without Services it has no text.
        is_trial: Whether to start one pod first, to check that nodes accept it.
    """

    resource: Resource
    platform: Platform
    config: ProxyConfig
    document: str
    config_hash: str
    listeners: tuple[ports.Listener, ...]
    ports: tuple[ports.Port, ...]
    sysctls: tuple[sysctls.Sysctl, ...]
    references: tuple[Reference, ...]
    selection: Selection = field(default_factory=dict)
    members: Members = NO_MEMBERS
    is_trial: bool = False

    @property
    def has_members(self) -> bool:
        """Whether a group of upstreams is a Service, so that the pods mount its members."""
        groups = (group for server in self.config.servers for group in server.upstream_groups)
        return any(group.members is not None and group.members.file for group in groups)

    @property
    def workload_kind(self) -> Kind:
        """The kind of the workload."""
        return DAEMON_SET if self.resource.mode == DAEMON_SET.name else DEPLOYMENT

    @property
    def has_workload(self) -> bool:
        """Whether the operator creates the pods."""
        return self.resource.mode != SIDECAR

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices about an accepted resource."""
        notices = [str(notice) for notice in self.resource.manifest.notices]
        notices += selected.notices(self.selection)
        pod = self.resource.deployment.pod
        unsafe = ", ".join(one.name for one in self.sysctls if one.applied and not one.safe)
        if unsafe and not pod.node_selector and not pod.affinity:
            notices.append(
                f"pods start only on nodes that allow {unsafe}: select these nodes with pod.nodeSelector"
            )
        if not self.has_workload and "podDisruptionBudget" in self.resource.manifest.raw["spec"]:
            notices.append(
                "spec.podDisruptionBudget is not used with mode Sidecar: the pods belong to other workloads"
            )
        if self.resource.deployment.autoscaling and self.resource.mode == "Deployment":
            notices.append("spec.replicas is not used: the autoscaler sets the number of pods")
        if self.takes_node_ports:
            notices.append(
                "pods use ports of their nodes: a namespace that enforces the Pod Security Standard "
                "baseline or restricted rejects them"
            )
        monitoring = self.resource.deployment.monitoring
        if monitoring.pod_monitor.enabled and monitoring.is_annotated:
            notices.append(
                "monitoring.scrapeAnnotations and podMonitor are both enabled: a Prometheus that uses both "
                "scrapes every pod twice"
            )
        return tuple(notices)

    @property
    def mounts_references(self) -> bool:
        """Whether Secrets or ConfigMaps are mounted besides the configuration."""
        return bool(self.references or any(self.selection.values()))

    @property
    def takes_node_ports(self) -> bool:
        """Whether two pods cannot run on one node because both use the same ports of the node."""
        return self.has_workload and (
            self.resource.deployment.pod.host_network or bool(self.resource.deployment.host_ports)
        )

    @property
    def requests_unsafe_sysctls(self) -> bool:
        """Whether the pods request a sysctl that a node may refuse."""
        return any(one.applied and not one.safe for one in self.sysctls)

    @property
    def pod_labels(self) -> dict[str, str]:
        """Labels that select the pods that run the proxy."""
        name = self.resource.name
        return names.selector_labels(name) if self.has_workload else names.injected_pod_labels(name)

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of the image pull Secrets."""
        return self.resource.deployment.image_pull_secrets or self.platform.image_pull_secrets

    @property
    def pods_sleep_before_stop(self) -> bool:
        """Whether a ``preStop`` hook delays the stop of a pod; otherwise the proxy delays it."""
        return self.platform.kube_version >= SLEEP_ACTION_SINCE


def planned(resource: Resource, platform: Platform, selection: Selection | None = None) -> Plan:
    """Compute the plan of a resource.

    Args:
        resource: The resource.
        platform: The input of rendering besides the resource.
        selection: The Secrets that its selectors have selected.

    Raises:
        ConfigError: The configuration is not valid.
    """
    offset = ports.HIGH_PORT_OFFSET if resource.deployment.port_strategy.value == "HighPort" else 0
    members = f"{platform.members_dir}/{MEMBERS_KEY}" if platform.members_dir else ""
    mounts = Mounts(platform.refs_dir, members)
    asked = compile_proxy(resource.manifest, mounts=mounts)
    config = asked if offset == 0 else compile_proxy(resource.manifest, mounts=mounts, port_offset=offset)
    if platform.kube_version >= SLEEP_ACTION_SINCE:
        config = replace(config, drain=DrainConfig(delay=Seconds(0.0), timeout=config.drain.timeout))
    listeners = ports.listeners(asked, offset=offset, host_ports=resource.deployment.host_ports)
    open_ports = ports.ports(listeners)
    return Plan(
        resource=resource,
        platform=platform,
        config=config,
        document=dump(config, generation=resource.generation).decode(),
        config_hash=config_hash(config),
        listeners=listeners,
        ports=open_ports,
        sysctls=_sysctls(resource, platform, listeners, open_ports),
        references=collect_references(resource.manifest),
        selection=selection or {},
    )


def _sysctls(
    resource: Resource,
    platform: Platform,
    listeners: tuple[ports.Listener, ...],
    open_ports: tuple[ports.Port, ...],
) -> tuple[sysctls.Sysctl, ...]:
    asked = resource.deployment.sysctls
    policy = sysctls.Policy(
        automatic=asked.mode.value == "Auto",
        unsafe_allowed=asked.unsafe.value == "Allow",
        extra=tuple((one.name, one.value) for one in asked.extra),
        host_network=resource.deployment.pod.host_network,
        refused=platform.refused_sysctls,
    )
    return sysctls.sysctls(
        [listener.listen for listener in listeners],
        policy,
        platform.kube_version,
        privileged_port=ports.privileged(open_ports),
    )
