# SPDX-License-Identifier: Apache-2.0
"""The schema of the Kubernetes part of a manifest; ``kubernetes`` reads its values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mailproxy_config.kubernetes_ports import NODE_PORTS, NODE_PORTS_MEANING, SERVICE_RULE
from mailproxy_config.schema import (
    AnyObject,
    Array,
    Boolean,
    Integer,
    IntOrString,
    MapOf,
    Object,
    Rule,
    Schema,
    String,
)
from mailproxy_config.value_types import MSEC_SHAPE

_WITH_VALUES: Final = ("In", "NotIn")


_SELECTOR: Final = Object(
    fields={
        "matchLabels": MapOf(values=String(max_length=63)),
        "matchExpressions": Array(
            max_items=16,
            items=Object(
                fields={
                    "key": String(max_length=317, min_length=1),
                    "operator": String(max_length=16, enum=(*_WITH_VALUES, "Exists", "DoesNotExist")),
                    "values": Array(items=String(max_length=63), max_items=64),
                },
                required=("key", "operator"),
                descriptions={
                    "key": "Key of the label.",
                    "operator": "Operator: In, NotIn, Exists or DoesNotExist.",
                    "values": "Values for In and NotIn.",
                },
                rules=(
                    Rule(
                        expression=(
                            "(self.operator in ['In', 'NotIn']) == "
                            "(has(self.values) && self.values.size() > 0)"
                        ),
                        message="In and NotIn need values; Exists and DoesNotExist take none",
                        predicate=lambda value: (
                            (value["operator"] in _WITH_VALUES) == bool(value.get("values"))
                        ),
                    ),
                ),
            ),
        ),
    },
    descriptions={
        "matchLabels": "Labels that a pod must have.",
        "matchExpressions": "Requirements for the labels of a pod, as in the selector of a Deployment.",
    },
)

SIDECAR: Final = Object(
    fields={
        "selector": _SELECTOR,
        "failurePolicy": String(max_length=8, enum=("Ignore", "Fail"), default="Ignore"),
    },
    descriptions={
        "selector": "Pods that may get the sidecar. Not set: every pod of the namespace that requests it.",
        "failurePolicy": (
            "Failure policy for a pod that requests the sidecar and cannot get it. Ignore: the pod runs "
            "without it, with a warning. Fail: the pod is rejected."
        ),
    },
)


SAFE_SYSCTLS: Final = (
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
)
"""The sysctls that a kubelet allows by default."""


_QUANTITY: Final = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)

_LABELS: Final = MapOf(values=String(max_length=4096))
_QUANTITIES: Final = MapOf(
    values=IntOrString(pattern=_QUANTITY, hint="a quantity such as 100m or 64Mi", max_length=32),
    max_fields=16,
)

_PERCENTAGE: Final = IntOrString(
    pattern="^[0-9]{1,3}%$", hint="a number or a percentage such as 50%", max_length=4
)


def _unstructured_list(max_items: int) -> Array:
    """A list of objects that are passed to Kubernetes unchanged."""
    return Array(items=AnyObject(), max_items=max_items)


def _name(max_length: int = 253) -> String:
    return String(max_length=max_length)


def _number_between(names: tuple[str, ...], lowest: int, highest: int, value: Mapping[str, str]) -> bool:
    if value["name"] not in names:
        return True
    text = value["value"]
    return re.fullmatch("[0-9]{1,5}", text, re.ASCII) is not None and lowest <= int(text) <= highest


def _ascending(value: Mapping[str, str]) -> bool:
    if value["name"] not in {"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}:
        return True
    if not re.fullmatch("[1-9][0-9]{0,9}( [1-9][0-9]{0,9}){2}", value["value"], re.ASCII):
        return False
    sizes = [int(size) for size in value["value"].split(" ")]
    return sizes == sorted(sizes) and sizes[-1] <= 2147483647


_EXTRA_RULES: Final = (
    Rule(
        expression=(
            "self.name != 'net.ipv4.ip_unprivileged_port_start' || "
            "(self.value.matches('^[0-9]{1,5}$') && int(self.value) <= 32768)"
        ),
        message=(
            "net.ipv4.ip_unprivileged_port_start takes 0 to 32768 "
            "(the low end of net.ipv4.ip_local_port_range)"
        ),
        predicate=lambda value: _number_between(("net.ipv4.ip_unprivileged_port_start",), 0, 32768, value),
        field_path=".value",
    ),
    Rule(
        expression=(
            "!(self.name in ['net.ipv4.tcp_keepalive_time', 'net.ipv4.tcp_keepalive_intvl']) || "
            "(self.value.matches('^[0-9]{1,5}$') && int(self.value) >= 1 && int(self.value) <= 32767)"
        ),
        message="net.ipv4.tcp_keepalive_time and _intvl take 1 to 32767 seconds",
        predicate=lambda value: _number_between(
            ("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_keepalive_intvl"), 1, 32767, value
        ),
        field_path=".value",
    ),
    Rule(
        expression=(
            "self.name != 'net.ipv4.tcp_keepalive_probes' || "
            "(self.value.matches('^[0-9]{1,3}$') && int(self.value) >= 1 && int(self.value) <= 127)"
        ),
        message="net.ipv4.tcp_keepalive_probes takes 1 to 127",
        predicate=lambda value: _number_between(("net.ipv4.tcp_keepalive_probes",), 1, 127, value),
        field_path=".value",
    ),
    Rule(
        expression=(
            "!(self.name in ['net.ipv4.tcp_rmem', 'net.ipv4.tcp_wmem']) || "
            "(self.value.matches('^[1-9][0-9]{0,9} [1-9][0-9]{0,9} [1-9][0-9]{0,9}$') && "
            "int(self.value.split(' ')[0]) <= int(self.value.split(' ')[1]) && "
            "int(self.value.split(' ')[1]) <= int(self.value.split(' ')[2]) && "
            "int(self.value.split(' ')[2]) <= 2147483647)"
        ),
        message="net.ipv4.tcp_rmem and tcp_wmem take three sizes in ascending order: min default max",
        predicate=_ascending,
        field_path=".value",
    ),
)


def _extra_is_allowed(value: Mapping[str, Any]) -> bool:
    names = {item["name"] for item in value.get("extra", ())}
    return value.get("unsafe") == "Allow" or names <= set(SAFE_SYSCTLS)


_SYSCTLS: Final = Object(
    default={},
    fields={
        "mode": String(max_length=8, enum=("Auto", "None"), default="Auto"),
        "unsafe": String(max_length=8, enum=("Forbid", "Allow"), default="Forbid"),
        "extra": Array(
            max_items=32,
            keys=("name",),
            items=Object(
                fields={
                    "name": String(
                        max_length=253,
                        min_length=1,
                        pattern=r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?\.)+[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                        hint="a sysctl's name with dots, such as net.ipv4.tcp_fin_timeout",
                    ),
                    "value": String(
                        max_length=128,
                        min_length=1,
                        pattern=r"^[0-9, \t-]+$",
                        hint="numbers in quotes, such as '15'",
                    ),
                },
                required=("name", "value"),
                rules=_EXTRA_RULES,
                descriptions={
                    "name": "Name of the sysctl, with dots.",
                    "value": "Value of the sysctl, in quotes.",
                },
            ),
        ),
    },
    descriptions={
        "mode": "Auto: sysctls are derived from the listeners. None: only those in extra are set.",
        "unsafe": "Allow or Forbid sysctls outside the kubelet's safe set. Nodes must allow them as well.",
        "extra": "Additional sysctls. They override derived ones.",
    },
    rules=(
        Rule(
            expression=(
                "self.unsafe == 'Allow' || !has(self.extra) || self.extra.all(x, x.name in ["
                + ", ".join(f"'{name}'" for name in SAFE_SYSCTLS)
                + "])"
            ),
            message=(
                "extra names a sysctl outside the kubelet's safe set; "
                "that needs unsafe: Allow and a node that allows it"
            ),
            reason="FieldValueForbidden",
            predicate=_extra_is_allowed,
        ),
    ),
)


_AUTOSCALING: Final = Object(
    fields={
        "minReplicas": Integer(minimum=1),
        "maxReplicas": Integer(minimum=1),
        "targetCPUUtilizationPercentage": Integer(minimum=1),
        "targetConnectionsPerPod": Integer(minimum=1),
        "behavior": AnyObject(),
    },
    required=("maxReplicas",),
    rules=(
        Rule(
            expression="!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            message="minReplicas must not be greater than maxReplicas",
            predicate=lambda value: value.get("minReplicas", 0) <= value["maxReplicas"],
        ),
    ),
    descriptions={
        "minReplicas": "Minimum number of pods. Default: the value of replicas.",
        "maxReplicas": "Maximum number of pods.",
        "targetCPUUtilizationPercentage": "Target average CPU utilization, in percent of the CPU request.",
        "targetConnectionsPerPod": "Target average of connections per pod. Requires a metrics adapter.",
        "behavior": "Scaling behavior, as in a HorizontalPodAutoscaler.",
    },
)

_SERVICE: Final = Object(
    fields={
        "type": String(max_length=16, enum=("ClusterIP", "NodePort", "LoadBalancer"), default="ClusterIP"),
        "annotations": _LABELS,
        "labels": _LABELS,
        "externalTrafficPolicy": String(max_length=16, enum=("Local", "Cluster")),
        "internalTrafficPolicy": String(max_length=16, enum=("Local", "Cluster")),
        "ipFamilyPolicy": String(
            max_length=32,
            enum=("SingleStack", "PreferDualStack", "RequireDualStack"),
            default="PreferDualStack",
        ),
        "ipFamilies": Array(items=String(max_length=8, enum=("IPv4", "IPv6")), max_items=2),
        "loadBalancerClass": _name(),
        "loadBalancerSourceRanges": Array(items=_name(64), max_items=64),
        "nodePorts": NODE_PORTS,
    },
    descriptions={
        "type": "Type of the Service: ClusterIP, NodePort or LoadBalancer.",
        "annotations": "Annotations of the Service, for example for cloud load balancers.",
        "labels": "Additional labels of the Service.",
        "externalTrafficPolicy": "Local (default) preserves the client's address; Cluster does not.",
        "internalTrafficPolicy": "Local: in-cluster traffic is sent only to pods on the same node.",
        "ipFamilyPolicy": "IP family policy of the Service: IPv4, IPv6 or both.",
        "ipFamilies": "IP families in order of preference.",
        "loadBalancerClass": "Load balancer implementation. Only for type LoadBalancer.",
        "loadBalancerSourceRanges": "Client networks (CIDR) to accept. Only for type LoadBalancer.",
        "nodePorts": NODE_PORTS_MEANING,
    },
    rules=(
        SERVICE_RULE,
        Rule(
            expression="self.type != 'ClusterIP' || !has(self.externalTrafficPolicy)",
            message="externalTrafficPolicy needs type LoadBalancer or NodePort",
            reason="FieldValueForbidden",
            predicate=lambda value: (
                value.get("type", "ClusterIP") != "ClusterIP" or "externalTrafficPolicy" not in value
            ),
        ),
    ),
)

_MONITORING: Final = Object(
    fields={
        "podMonitor": Object(
            fields={"enabled": Boolean(), "interval": _name(16), "labels": _LABELS},
            descriptions={
                "enabled": "Creates a PodMonitor.",
                "interval": "Scrape interval, for example 30s. Default: 30s.",
                "labels": "Labels of the object, for the selector of the Prometheus resource.",
            },
        ),
        "prometheusRule": Object(
            fields={"enabled": Boolean(), "labels": _LABELS},
            descriptions={
                "enabled": "Creates a PrometheusRule.",
                "labels": "Labels of the object, for the selector of the Prometheus resource.",
            },
        ),
        "scrapeAnnotations": Boolean(),
    },
    descriptions={
        "podMonitor": "PodMonitor for the pods. Requires the CRD of the Prometheus operator.",
        "prometheusRule": "PrometheusRule with alerts. Requires the CRD of the Prometheus operator.",
        "scrapeAnnotations": (
            "Adds the prometheus.io annotations to the pods. Default: true, or false if podMonitor is "
            "enabled,"
            " because the pods would be scraped twice."
        ),
    },
)

_BUDGET: Final = Object(
    fields={"minAvailable": _PERCENTAGE, "maxUnavailable": _PERCENTAGE},
    rules=(
        Rule(
            expression="!(has(self.minAvailable) && has(self.maxUnavailable))",
            message="set only one of minAvailable and maxUnavailable",
            predicate=lambda value: len(value) <= 1,
        ),
    ),
    descriptions={
        "minAvailable": "Minimum number or percentage of available pods.",
        "maxUnavailable": "Maximum number or percentage of unavailable pods.",
    },
)

_NETWORK_POLICY: Final = Object(
    fields={
        "enabled": Boolean(),
        "metricsFrom": _unstructured_list(16),
        "clientsFrom": _unstructured_list(16),
        "egress": _unstructured_list(32),
    },
    descriptions={
        "enabled": "Creates a NetworkPolicy. Outgoing traffic must then be listed in egress. "
        "Not allowed with mode Sidecar.",
        "metricsFrom": "Peers that may connect to the metrics port. The operator always may.",
        "clientsFrom": "Peers that may connect to the mail ports. Not set: all.",
        "egress": "Egress rules, in addition to DNS and the authentication service.",
    },
)

_POD: Final = Object(
    fields={
        "labels": _LABELS,
        "annotations": _LABELS,
        "nodeSelector": _LABELS,
        "tolerations": _unstructured_list(64),
        "affinity": AnyObject(),
        "topologySpreadConstraints": _unstructured_list(16),
        "priorityClassName": _name(),
        "runtimeClassName": _name(),
        "serviceAccountName": _name(),
        "hostNetwork": Boolean(),
        "hostUsers": Boolean(),
        "dnsPolicy": _name(32),
        "dnsConfig": AnyObject(),
        "hostAliases": _unstructured_list(64),
        "securityContext": AnyObject(),
        "extraVolumes": _unstructured_list(32),
        "extraVolumeMounts": _unstructured_list(32),
        "extraEnv": _unstructured_list(64),
        "extraContainers": _unstructured_list(8),
    },
    descriptions={
        "labels": "Additional labels of the pods. Labels of the operator take precedence.",
        "annotations": "Annotations of the pods.",
        "nodeSelector": "Labels that a node must have.",
        "tolerations": "Tolerations for node taints.",
        "affinity": "Node and pod affinity.",
        "topologySpreadConstraints": (
            "Topology spread constraints. Not set: a Deployment is spread over nodes and zones if possible."
            " Empty list: no constraints."
        ),
        "priorityClassName": "Priority class of the pods.",
        "runtimeClassName": "Runtime class of the pods.",
        "serviceAccountName": "Existing service account. Not set: one without permissions is created.",
        "hostNetwork": "Runs the pods in the network namespace of the node. Excludes net.* sysctls.",
        "hostUsers": "false: each pod has its own user namespace. true: the pods share that of the node.",
        "dnsPolicy": "DNS policy of the pods.",
        "dnsConfig": "DNS servers and search domains of the pods.",
        "hostAliases": "Additional entries of /etc/hosts.",
        "securityContext": "Fields of the pod security context. They override those of the operator.",
        "extraVolumes": "Additional volumes of the pods.",
        "extraVolumeMounts": "Additional volume mounts of the proxy's container.",
        "extraEnv": "Environment variables of the proxy's container.",
        "extraContainers": "Additional containers of the pods.",
    },
)


DEPLOYMENT_FIELDS: Final[Mapping[str, Schema]] = {
    "mode": String(max_length=16, enum=("Deployment", "DaemonSet", "Sidecar"), default="Deployment"),
    "replicas": Integer(default=2),
    "autoscaling": _AUTOSCALING,
    "image": _name(512),
    "imagePullPolicy": String(max_length=16, enum=("Always", "IfNotPresent", "Never")),
    "imagePullSecrets": Array(
        max_items=16,
        items=Object(
            fields={"name": String(max_length=253, min_length=1)},
            required=("name",),
            descriptions={"name": "Name of a Secret of type kubernetes.io/dockerconfigjson."},
        ),
    ),
    "service": _SERVICE,
    "portStrategy": String(max_length=16, enum=("Direct", "HighPort"), default="Direct"),
    "sysctls": _SYSCTLS,
    "drain": Object(
        default={},
        fields={
            "delay": MSEC_SHAPE.with_default("5s"),
            "timeout": MSEC_SHAPE.with_default("5m"),
        },
        descriptions={
            "delay": "Time for which a terminating pod still accepts connections.",
            "timeout": "Time for which relayed connections can continue after that.",
        },
    ),
    "monitoring": _MONITORING,
    "podDisruptionBudget": _BUDGET,
    "networkPolicy": _NETWORK_POLICY,
    "resources": Object(
        fields={"requests": _QUANTITIES, "limits": _QUANTITIES},
        descriptions={
            "requests": "Resources that the scheduler reserves for a pod.",
            "limits": "Maximum resources of a pod.",
        },
    ),
    "pod": _POD,
    "sidecar": SIDECAR,
    "paused": Boolean(default=False),
}
"""Schemas of the fields of ``spec`` for the deployment on Kubernetes."""


DEPLOYMENT_MEANINGS: Final[Mapping[str, str]] = {
    "mode": "Workload of the proxy: Deployment, DaemonSet, or Sidecar (in pods that request it).",
    "replicas": "Number of pods, for mode Deployment without autoscaling.",
    "autoscaling": "Horizontal pod autoscaling. Requires mode Deployment.",
    "image": "Image of the proxy. Default: the setting of the operator.",
    "imagePullPolicy": "Image pull policy.",
    "imagePullSecrets": "Secrets for pulling the image.",
    "service": "Service for the mail ports. In mode Sidecar there is a Service only if this field is set.",
    "portStrategy": (
        "Direct: the container listens on the listen ports; ports below 1024 need a sysctl. HighPort: it"
        " listens on 10000 + port behind the Service and needs no sysctl."
    ),
    "sysctls": "Sysctls (kernel parameters) of the pods.",
    "drain": "Graceful shutdown of a pod.",
    "monitoring": "Objects and annotations with which Prometheus discovers the pods.",
    "podDisruptionBudget": "Pod disruption budget. Default: at most one unavailable pod.",
    "networkPolicy": "NetworkPolicy for the pods.",
    "resources": "Resources of the proxy's container. Default: requests of 100m CPU and 64Mi memory.",
    "pod": "Additional fields of the pod template, passed to Kubernetes unchanged.",
    "sidecar": "Pods that may get the sidecar, for mode Sidecar.",
    "paused": "Pauses reconciliation: the operator changes no objects while this is true.",
}
"""Their descriptions."""
