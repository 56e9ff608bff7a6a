# SPDX-License-Identifier: Apache-2.0
"""What the reasons in ``status.sysctls`` and in the events about sidecars mean, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy_operator.reasons import (
    EventReason,
    InjectionReason,
    PolicyReason,
    RouteEventReason,
    SysctlReason,
    UpstreamEventReason,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRow:
    """One reason that is not one of a condition."""

    reason: (
        SysctlReason | EventReason | InjectionReason | UpstreamEventReason | PolicyReason | RouteEventReason
    )
    meaning: str
    action: str = ""
    example: str = ""


SYSCTLS: tuple[OtherRow, ...] = (
    OtherRow(
        reason=SysctlReason.PRIVILEGED_PORT,
        meaning="Applied, because a container port is below 1024.",
    ),
    OtherRow(
        reason=SysctlReason.SO_KEEPALIVE,
        meaning="Applied, because all listeners with `soKeepalive` set the same value.",
    ),
    OtherRow(
        reason=SysctlReason.RECEIVE_BUFFER,
        meaning="Applied, because a listener has a larger `rcvbuf` than the kernel's default.",
    ),
    OtherRow(
        reason=SysctlReason.SEND_BUFFER,
        meaning="Applied, because a listener has a larger `sndbuf` than the kernel's default.",
    ),
    OtherRow(
        reason=SysctlReason.BACKLOG,
        meaning="Applied, because a listener has a `backlog` above 4096.",
    ),
    OtherRow(reason=SysctlReason.EXTRA, meaning="Applied, because it is in `spec.sysctls.extra`."),
    OtherRow(
        reason=SysctlReason.CONFLICTING_LISTENERS,
        meaning=(
            "Not applied: listeners have different `soKeepalive` values. Each socket has its own value."
        ),
        action="Nothing, or give the listeners the same values.",
        example=(
            "not set, because listeners disagree: *:143 sets 600, *:993 sets 1800; the sockets themselves"
            " have what each listener sets"
        ),
    ),
    OtherRow(
        reason=SysctlReason.HOST_NETWORK,
        meaning="Not applied: a pod in the host's network cannot set `net.*` sysctls.",
        action="Set it on the node, or use `spec.portStrategy: HighPort`.",
        example="a pod with pod.hostNetwork cannot set net.* sysctls: set it on the node",
    ),
    OtherRow(
        reason=SysctlReason.MODE_NONE,
        meaning="Not applied: `spec.sysctls.mode` is `None`.",
        action="Set `Auto` to apply it.",
        example="sysctls.mode is None: set Auto to have it",
    ),
    OtherRow(
        reason=SysctlReason.SYSCTL_FORBIDDEN,
        meaning="Not applied: a node has refused a pod with it.",
        action="See the reason [SysctlForbidden](#sysctlforbidden) of `Stalled`.",
        example=(
            "a node refused a pod with it: allow it on the nodes (kubelet --allowed-unsafe-sysctls) and "
            "change the resource, or remove it from sysctls.extra"
        ),
    ),
    OtherRow(
        reason=SysctlReason.UNSAFE_NOT_ALLOWED,
        meaning="Not applied: it is not in the kubelet's safe set, and `spec.sysctls.unsafe` is `Forbid`.",
        action="Set `spec.sysctls.unsafe: Allow`, on nodes that allow the sysctl.",
        example="not in the kubelet's safe set: needs sysctls.unsafe: Allow and nodes that allow it",
    ),
    OtherRow(
        reason=SysctlReason.NODE_TOO_OLD,
        meaning="Not applied: the oldest node has a Kubernetes version on which the sysctl is not safe.",
        action="Upgrade the nodes; the sockets have their options anyway.",
        example="nodes take it from Kubernetes 1.32 on, the oldest here is 1.29",
    ),
)
"""Every reason of an entry of ``status.sysctls``."""

CERTIFICATE_EVENTS: tuple[OtherRow, ...] = (
    OtherRow(
        reason=EventReason.CERTIFICATE_NOT_USED,
        meaning=(
            "Pods do not use a certificate that clients choose by name, or not for all of its names: it "
            "cannot be loaded, or an older Secret has the same name. All other certificates are used."
        ),
        action="Correct the Secret that the note names, or remove its label.",
    ),
)
"""Every reason of an event about certificates; the type is Warning."""

SIDECAR_EVENTS: tuple[OtherRow, ...] = (
    OtherRow(
        reason=EventReason.SIDECAR_MISSING,
        meaning="A pod was created without the proxy that its label `mailproxy.dev/inject` requests.",
        action="Correct the cause, which is the first word of the note (table below), then delete the pod.",
    ),
    OtherRow(
        reason=EventReason.SIDECAR_REFUSED,
        meaning=(
            "The same, and the MailProxy has `spec.sidecar.failurePolicy: Fail`: the pod was not created."
        ),
        action="Correct the cause; the workload creates the pod by itself.",
    ),
)
"""Every reason of an event about pods without their sidecar; the type is Warning."""

POLICIES: tuple[OtherRow, ...] = (
    OtherRow(
        reason=PolicyReason.ACCEPTED,
        meaning="`Accepted=True`: connections to the Service use the policy.",
        example="the policy is used for connections to this Service",
    ),
    OtherRow(
        reason=PolicyReason.RESOLVED_REFS,
        meaning="`ResolvedRefs=True`: the ConfigMap exists and has the key, or no object is referred to.",
        example="all references are resolved",
    ),
    OtherRow(
        reason=PolicyReason.CONFLICTED,
        meaning="`Accepted=False`: an older policy is for the same Service and port.",
        action="Delete one of the two, or set `sectionName`.",
        example="the older policy dovecot is for the same Service and port",
    ),
    OtherRow(
        reason=PolicyReason.INVALID,
        meaning="`Accepted=False`: it has what the proxy does not support, or `proxySsl` is Disabled.",
        action="Change what the message names.",
        example=(
            "proxySsl of server imap is Disabled: set Enabled or Starttls; a policy does not have how TLS "
            "begins"
        ),
    ),
    OtherRow(
        reason=PolicyReason.NO_VALID_CA_CERTIFICATE,
        meaning="`Accepted=False`: the reference to the CA certificates is not valid.",
        action="See `ResolvedRefs` of the policy.",
        example="caCertificateRefs: ConfigMap mail-ca does not exist; create it with the key ca.crt",
    ),
    OtherRow(
        reason=PolicyReason.INVALID_CA_CERTIFICATE_REF,
        meaning="`ResolvedRefs=False`: the ConfigMap does not exist, or has no key `ca.crt`.",
        action="Create it. The operator looks again within a minute at first, later within ten.",
        example="caCertificateRefs: ConfigMap mail-ca has no key ca.crt",
    ),
    OtherRow(
        reason=PolicyReason.INVALID_KIND,
        meaning="`ResolvedRefs=False`: the reference is to another kind than ConfigMap and Secret.",
        action="Put the certificates into a ConfigMap.",
        example="caCertificateRefs: ClusterTrustBundle is not supported, only ConfigMap and Secret",
    ),
)
"""Every reason in ``status.ancestors`` of a BackendTLSPolicy."""

UPSTREAM_EVENTS: tuple[OtherRow, ...] = (
    OtherRow(
        reason=UpstreamEventReason.UPSTREAM_MISCONFIGURED,
        meaning=(
            "Logins fail at a mail server, and no retry helps: TLS, a guard, or XCLIENT or ID that is "
            "required and not accepted. The note has the server, the stage and the cause."
        ),
        action="Change the directive in the note, or the mail server: [upstreams.md](../upstreams.md).",
    ),
)
"""Every reason of an event about mail servers; the type is Warning."""

ROUTE_EVENTS: tuple[OtherRow, ...] = (
    OtherRow(
        reason=RouteEventReason.ROUTE_TABLE_REFUSED,
        meaning=(
            "A table of routes is not valid, so pods use its last valid version. The note has the object, "
            "the key, the number of the line and what is wrong with it, and nothing of the line."
        ),
        action="Correct the line: [routes.md](../routes.md#tables). Pods load the table without a restart.",
    ),
    OtherRow(
        reason=RouteEventReason.USER_LIST_REFUSED,
        meaning="The same of a list of users (`authUserFile`).",
        action="Correct the line: [static-users.md](../static-users.md).",
    ),
)
"""Every reason of an event about tables of routes and lists of users; the type is Warning."""

INJECTION: tuple[OtherRow, ...] = (
    OtherRow(
        reason=InjectionReason.MAIL_PROXY_NOT_FOUND,
        meaning="The MailProxy that the label names does not exist in the namespace of the pod.",
        action="Create it, or correct the label.",
        example="there is no MailProxy edge in namespace mail; create it before the pod",
    ),
    OtherRow(
        reason=InjectionReason.NOT_A_SIDECAR,
        meaning="The MailProxy has another mode.",
        action="Set `spec.mode: Sidecar`, or remove the label.",
        example="MailProxy edge has mode Deployment; it must have spec.mode: Sidecar",
    ),
    OtherRow(
        reason=InjectionReason.NOT_SELECTED,
        meaning="`spec.sidecar.selector` does not match the labels of the pod.",
        action="Change the selector or the labels.",
        example="MailProxy edge is for other pods: see spec.sidecar.selector",
    ),
    OtherRow(
        reason=InjectionReason.INVALID_SPEC,
        meaning="The MailProxy is not valid.",
        action="See its condition `Accepted`.",
        example="MailProxy edge is not valid: spec.servers: must not be empty",
    ),
    OtherRow(
        reason=InjectionReason.LABEL_CONFLICT,
        meaning="The label of the pod names another MailProxy than the one to inject.",
        action="Remove the label from the pod template.",
        example=(
            "the pod's label mailproxy.dev/proxy=other names another MailProxy than edge; remove it from "
            "the pod template"
        ),
    ),
    OtherRow(
        reason=InjectionReason.WRONG_SYSTEM,
        meaning="`spec.os.name` of the pod is not `linux`.",
        action="Remove the label.",
        example="the pod runs on windows (spec.os.name); the proxy runs on linux only",
    ),
    OtherRow(
        reason=InjectionReason.NAME_CONFLICT,
        meaning="The pod has a container or volume with the name that the proxy needs.",
        action="Rename it.",
        example="the pod has a container mailproxy that is not the sidecar; rename that container",
    ),
    OtherRow(
        reason=InjectionReason.PORT_CONFLICT,
        meaning="A container of the pod has a port that the proxy needs.",
        action="Change one of the two ports.",
        example="port 143 is used by container cyrus; change one of them",
    ),
    OtherRow(
        reason=InjectionReason.HOST_NETWORK,
        meaning="The pod is in the host's network, where the proxy cannot open ports below 1024.",
        action="Set `spec.portStrategy: HighPort` of the MailProxy.",
        example="with hostNetwork the proxy cannot open port 143 without root; use portStrategy: HighPort",
    ),
    OtherRow(
        reason=InjectionReason.SYSCTL_CONFLICT,
        meaning="A sysctl of the pod itself forbids the proxy to open its port.",
        action=(
            "Remove the sysctl from the pod template, or set `spec.portStrategy: HighPort` of the MailProxy."
        ),
        example=(
            "the pod's own sysctl net.ipv4.ip_unprivileged_port_start=1024 does not permit port 143; use "
            "portStrategy: HighPort"
        ),
    ),
)
"""Every cause for which a pod gets no sidecar."""
