# SPDX-License-Identifier: Apache-2.0
"""What the Kubernetes part of the manifest may look like; its values are read by ``deployment``."""

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
                    "key": "The label.",
                    "operator": "In, NotIn, Exists or DoesNotExist.",
                    "values": "The values that In and NotIn compare with.",
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
        "matchExpressions": "Conditions that a pod's labels must meet, as in a Deployment.",
    },
)

SIDECAR: Final = Object(
    fields={
        "selector": _SELECTOR,
        "failurePolicy": String(max_length=8, enum=("Ignore", "Fail"), default="Ignore"),
    },
    descriptions={
        "selector": "Pods that may carry it; every pod of the namespace that asks for it unless given.",
        "failurePolicy": (
            "What becomes of a pod that asks for it and cannot get it: Ignore lets it run without, "
            "with a warning; Fail refuses it."
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
"""The kernel settings that a kubelet allows without being told to."""


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


def _passed_on(max_items: int) -> Array:
    """A list of objects that are handed to Kubernetes as they are."""
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
                    "name": "The name of the kernel setting, with dots.",
                    "value": "Its value, in quotes.",
                },
            ),
        ),
    },
    descriptions={
        "mode": "Auto derives kernel settings from the listeners; None sets none of them.",
        "unsafe": "Whether settings outside the kubelet's safe set may be asked for; nodes must allow them.",
        "extra": "Further settings; they override what is derived.",
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
        "minReplicas": "The fewest pods; replicas unless given.",
        "maxReplicas": "The most pods.",
        "targetCPUUtilizationPercentage": "The average CPU use to aim at, in percent of the request.",
        "targetConnectionsPerPod": "The average number of connections to aim at; needs a metrics adapter.",
        "behavior": "How fast pods come and go, as in a HorizontalPodAutoscaler.",
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
        "type": "ClusterIP, NodePort or LoadBalancer.",
        "annotations": "Annotations of the Service, such as those that cloud load balancers read.",
        "labels": "Labels of the Service beside the operator's own.",
        "externalTrafficPolicy": (
            "Local, the default here, keeps the client's address; Cluster uses all nodes and hides it."
        ),
        "internalTrafficPolicy": "Local sends traffic from inside the cluster to pods of the same node only.",
        "ipFamilyPolicy": "Whether the Service has addresses of IPv4, IPv6 or both.",
        "ipFamilies": "The families in the order of preference.",
        "loadBalancerClass": "Which implementation makes the load balancer; type LoadBalancer only.",
        "loadBalancerSourceRanges": "Networks that the load balancer admits; type LoadBalancer only.",
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
                "enabled": "Whether there is one.",
                "interval": "How often the pods are scraped, such as 30s.",
                "labels": "Labels by which the Prometheus resource selects it.",
            },
        ),
        "prometheusRule": Object(
            fields={"enabled": Boolean(), "labels": _LABELS},
            descriptions={
                "enabled": "Whether there is one.",
                "labels": "Labels by which the Prometheus resource selects it.",
            },
        ),
        "scrapeAnnotations": Boolean(),
    },
    descriptions={
        "podMonitor": "A PodMonitor, where the cluster knows that kind.",
        "prometheusRule": "A PrometheusRule with alerts, where the cluster knows that kind.",
        "scrapeAnnotations": (
            "Whether pods carry the prometheus.io annotations; true unless podMonitor is enabled, which would"
            " have them scraped twice."
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
        "minAvailable": "How many pods must stay, as a number or a percentage.",
        "maxUnavailable": "How many pods may be missing, as a number or a percentage.",
    },
)

_NETWORK_POLICY: Final = Object(
    fields={
        "enabled": Boolean(),
        "metricsFrom": _passed_on(16),
        "clientsFrom": _passed_on(16),
        "egress": _passed_on(32),
    },
    descriptions={
        "enabled": "Whether there is a NetworkPolicy; outgoing traffic must then be listed in egress. "
        "Not with mode Sidecar.",
        "metricsFrom": "Peers that may read the metrics, beside the operator, which is always let in.",
        "clientsFrom": "Peers that may connect to the mail ports; everybody unless given.",
        "egress": "Rules for outgoing traffic, beside name servers and the authentication service.",
    },
)

_POD: Final = Object(
    fields={
        "labels": _LABELS,
        "annotations": _LABELS,
        "nodeSelector": _LABELS,
        "tolerations": _passed_on(64),
        "affinity": AnyObject(),
        "topologySpreadConstraints": _passed_on(16),
        "priorityClassName": _name(),
        "runtimeClassName": _name(),
        "serviceAccountName": _name(),
        "hostNetwork": Boolean(),
        "hostUsers": Boolean(),
        "dnsPolicy": _name(32),
        "dnsConfig": AnyObject(),
        "hostAliases": _passed_on(64),
        "securityContext": AnyObject(),
        "extraVolumes": _passed_on(32),
        "extraVolumeMounts": _passed_on(32),
        "extraEnv": _passed_on(64),
        "extraContainers": _passed_on(8),
    },
    descriptions={
        "labels": "Labels of the pods beside the operator's own, which win.",
        "annotations": "Annotations of the pods.",
        "nodeSelector": "Labels that a node must have.",
        "tolerations": "Taints of nodes that the pods tolerate.",
        "affinity": "Which nodes and which other pods the pods prefer or avoid.",
        "topologySpreadConstraints": (
            "How the pods spread; unless given, a Deployment spreads over nodes and zones as far as possible."
            " An empty list leaves it to the scheduler."
        ),
        "priorityClassName": "The priority class of the pods.",
        "runtimeClassName": "The runtime class of the pods.",
        "serviceAccountName": "An existing service account; unless given, one without any rights is made.",
        "hostNetwork": "Whether the pods use the network of their node; no net.* sysctl can be set then.",
        "hostUsers": "Whether the pods share the user namespace of their node; false gives each its own.",
        "dnsPolicy": "How names are resolved in the pods.",
        "dnsConfig": "Name servers and search domains of the pods.",
        "hostAliases": "Further lines of /etc/hosts.",
        "securityContext": "Fields of the pod's security context; they win over the operator's own.",
        "extraVolumes": "Further volumes of the pods.",
        "extraVolumeMounts": "Where the proxy's container mounts them.",
        "extraEnv": "Environment variables of the proxy's container.",
        "extraContainers": "Further containers beside the proxy's.",
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
            descriptions={"name": "The name of a Secret of type kubernetes.io/dockerconfigjson."},
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
            "delay": "How long a leaving pod still accepts connections, until load balancers have noticed.",
            "timeout": "How long relayed connections may go on after that.",
        },
    ),
    "monitoring": _MONITORING,
    "podDisruptionBudget": _BUDGET,
    "networkPolicy": _NETWORK_POLICY,
    "resources": Object(
        fields={"requests": _QUANTITIES, "limits": _QUANTITIES},
        descriptions={
            "requests": "What the scheduler reserves for a pod.",
            "limits": "What a pod may use at most.",
        },
    ),
    "pod": _POD,
    "sidecar": SIDECAR,
    "paused": Boolean(default=False),
}
"""Shapes of the fields of ``spec`` that say how the proxy runs on Kubernetes."""


DEPLOYMENT_MEANINGS: Final[Mapping[str, str]] = {
    "mode": "What runs the proxy: a Deployment, a DaemonSet, or a Sidecar in pods that ask for it.",
    "replicas": "How many pods there are, with mode Deployment and without autoscaling.",
    "autoscaling": "Scales the pods with their load; needs mode Deployment.",
    "image": "The proxy's image; the operator's own setting unless given.",
    "imagePullPolicy": "When the image is pulled.",
    "imagePullSecrets": "Secrets for pulling the image.",
    "service": "The Service in front of the pods; with mode Sidecar there is one only if this is given.",
    "portStrategy": (
        "Direct listens on the very ports, which below 1024 needs a sysctl; HighPort listens on"
        " 10000 + port behind the Service and needs none."
    ),
    "sysctls": "Kernel settings of the pods.",
    "drain": "How a pod leaves.",
    "monitoring": "How the metrics are found.",
    "podDisruptionBudget": "How many pods may be missing while nodes are drained; one unless given.",
    "networkPolicy": "Who may talk to the pods, and whom they may talk to.",
    "resources": "CPU and memory of a pod, as in a container.",
    "pod": "Further fields of the pods, handed to Kubernetes as they are.",
    "sidecar": "Which pods may carry the proxy, with mode Sidecar.",
    "paused": "Leaves everything as it is until this is false again.",
}
"""One sentence for each of them."""
