# SPDX-License-Identifier: Apache-2.0
"""What each condition and each reason means, what to do, and an example message.

A test produces every example with the operator's code, and fails if a reason that the operator can write
has no row, or if a row describes what the operator never writes.
"""

from __future__ import annotations

from mailproxy_operator.reasons import Reason
from mailproxy_operator.reasons.group_rows import GROUPS
from mailproxy_operator.reasons.rows import ConditionType, ReasonRow, State
from mailproxy_operator.reasons.upstream_rows import ROUTES, UPSTREAM_TLS

CONDITIONS = (
    ConditionType("Ready", "True", "clients are served with the newest configuration; sums up the others"),
    ConditionType("Accepted", "True", "the resource is valid, and every object was applied"),
    ConditionType(
        "ResolvedRefs", "True", "every Secret and ConfigMap that the resource refers to is mounted"
    ),
    ConditionType("Available", "True", "enough pods are ready"),
    ConditionType("ConfigSynced", "True", "every ready pod runs the newest configuration"),
    ConditionType(
        "UpstreamTLSReady",
        "True",
        "TLS with mail servers works; only with `proxySsl`, and not part of `Ready`",
    ),
    ConditionType(
        "RoutesReady",
        "True",
        "tables of routes and lists of users are loaded; only where there are some, and not part of `Ready`",
    ),
    ConditionType(
        "GroupsReady",
        "True",
        "Services in `spec.upstreams` have ready members; only with `service`, and not part of `Ready`",
    ),
    ConditionType("Reconciling", "False", "a change is in progress"),
    ConditionType("Stalled", "False", "the resource does not become ready without a change by a user"),
)
"""The conditions in the order of the status."""
_SUMMARIZED = ("Accepted", "ResolvedRefs", "Available", "ConfigSynced")


def all_states(row: ReasonRow) -> tuple[State, ...]:
    """Return the states of a reason with that of ``Ready``, which has the reason of the first cause."""
    ready = [status for name, status in row.states if name in _SUMMARIZED and status != "True"]
    stalls = ["False" for state in row.states if state == ("Stalled", "True")]
    return (*row.states, *(("Ready", status) for status in dict.fromkeys([*ready, *stalls])))


def event_type(row: ReasonRow) -> str:
    """Return the type of the event of a reason; empty when no event has it."""
    statuses = [status for name, status in all_states(row) if name == "Ready"]
    if not statuses:
        return ""
    if statuses == ["True"]:
        return "Normal"
    return "Normal during a rollout, otherwise Warning" if row.is_transient else "Warning"


_REFUSED: tuple[State, ...] = (("Accepted", "False"), ("Stalled", "True"))
_UNAVAILABLE: tuple[State, ...] = (("Available", "False"),)
_UNRESOLVED: tuple[State, ...] = (("ResolvedRefs", "False"),)

REASONS = (
    ReasonRow(
        reason=Reason.READY,
        states=(("Ready", "True"),),
        meaning="Enough pods serve clients, and all ready pods run the newest configuration.",
        example="clients are served with the newest configuration",
    ),
    # -- Accepted --------------------------------------------------------------
    ReasonRow(
        reason=Reason.ACCEPTED,
        states=(("Accepted", "True"),),
        meaning=(
            "The resource is valid, and the API server has accepted every object. Notices about the "
            "resource and warnings of the API server follow in the message."
        ),
        action="Read the notices, if there are any.",
        example=(
            "the configuration is valid and every object was applied; note: spec.replicas is not used: "
            "the autoscaler decides how many pods there are"
        ),
    ),
    ReasonRow(
        reason=Reason.INVALID_SPEC,
        states=_REFUSED,
        meaning=(
            "A field of the resource is not valid, or the API server has refused an object for a value "
            "that a field sets. The pods keep running with the last valid configuration."
        ),
        action="Correct the fields in the message: each problem has the path of its field.",
        example=(
            "spec.mail.timeout: must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds"
        ),
    ),
    ReasonRow(
        reason=Reason.LISTENER_CONFLICT,
        states=_REFUSED,
        meaning="Two listeners of the resource have the same address and port.",
        action="Change the address or the port of one of them.",
        example=(
            "spec.servers[1].listen[0]: duplicate *:143 address and port pair, also in "
            "spec.servers[0].listen[0]"
        ),
    ),
    ReasonRow(
        reason=Reason.NAME_CONFLICT,
        states=_REFUSED,
        meaning=(
            "An object with the name that the operator needs exists, and does not belong to this MailProxy."
        ),
        action="Rename the MailProxy, or delete the other object if nothing needs it.",
        example=(
            "Service edge exists and does not belong to this MailProxy; rename the MailProxy "
            "(metadata.name), or delete that object"
        ),
    ),
    ReasonRow(
        reason=Reason.INVALID_POD_FIELDS,
        states=_REFUSED,
        meaning="The API server refuses the Deployment or DaemonSet for a field of the pod.",
        action=(
            "Correct the field in the message, which is below `spec.pod`, or comes from another field of "
            "`spec`."
        ),
        example=(
            'Deployment mail/edge: Deployment.apps "edge" is invalid: '
            'spec.template.spec.priorityClassName: Invalid value: "Mail": a lowercase RFC 1123 subdomain '
            "must consist of lower case alphanumeric characters; correct the field: spec.pod, or another "
            "field of spec that sets it"
        ),
    ),
    ReasonRow(
        reason=Reason.FORBIDDEN,
        states=_REFUSED,
        meaning=(
            "The API server does not allow the operator to write an object: a quota is used up, an "
            "admission policy refuses it, or the operator has no permission."
        ),
        action=(
            "Change the quota or the policy. For a missing permission, compare the ClusterRole with "
            "`deploy/rbac.yaml`. The operator tries again every minute."
        ),
        example=(
            'Deployment mail/edge: deployments.apps "edge" is forbidden: exceeded quota: mail, requested:'
            " count/deployments.apps=1; change the quota or the policy, or give the operator this "
            "permission (deploy/rbac.yaml); the operator tries again every minute"
        ),
    ),
    # -- ResolvedRefs ----------------------------------------------------------
    ReasonRow(
        reason=Reason.RESOLVED_REFS,
        states=(("ResolvedRefs", "True"),),
        meaning="Every Secret and ConfigMap that the resource refers to is mounted.",
        example="all referenced Secrets and ConfigMaps are mounted",
    ),
    ReasonRow(
        reason=Reason.NOT_YET_MOUNTED,
        states=(("ResolvedRefs", "Unknown"),),
        meaning=(
            "No pod of the newest template has started, so it is not known yet whether its volumes are "
            "complete."
        ),
        action="Wait for a pod. If it takes minutes, see the message of `Available`.",
        example="no pod of the current template has started yet",
        is_transient=True,
    ),
    ReasonRow(
        reason=Reason.SECRET_NOT_FOUND,
        states=_UNRESOLVED,
        meaning=(
            "A Secret that the resource refers to does not exist in its namespace, so a new pod cannot start."
        ),
        action=(
            "Create the Secret (`kubectl create secret tls NAME --cert=FILE --key=FILE`), or correct the "
            "field. The pod starts by itself afterwards."
        ),
        example=(
            'pod edge-6d9c7-x2x: MountVolume.SetUp failed for volume "refs" : secret "mail-tls" not '
            "found; mail-tls is the value of spec.mail.sslCertificate[0].secretName; create the Secret in"
            " the MailProxy's namespace, or correct the field"
        ),
    ),
    ReasonRow(
        reason=Reason.SECRET_KEY_NOT_FOUND,
        states=_UNRESOLVED,
        meaning="The Secret exists, and lacks a key that the resource refers to.",
        action="Add the key to the Secret, or correct `key` of the field.",
        example=(
            'pod edge-6d9c7-x2x: MountVolume.SetUp failed for volume "refs" : references non-existent '
            "secret key: tls.crt; add the key to the Secret, or correct the field"
        ),
    ),
    ReasonRow(
        reason=Reason.CONFIG_MAP_NOT_FOUND,
        states=_UNRESOLVED,
        meaning=(
            "A ConfigMap that the resource refers to does not exist in its namespace, so a new pod cannot"
            " start."
        ),
        action="Create the ConfigMap, or correct the field.",
        example=(
            'pod edge-6d9c7-x2x: MountVolume.SetUp failed for volume "refs" : configmap "clients" not '
            "found; clients is the value of spec.mail.sslClientCertificate.configMapKeyRef; create the "
            "ConfigMap in the MailProxy's namespace, or correct the field"
        ),
    ),
    ReasonRow(
        reason=Reason.CONFIG_MAP_KEY_NOT_FOUND,
        states=_UNRESOLVED,
        meaning="The ConfigMap exists, and lacks a key that the resource refers to.",
        action="Add the key to the ConfigMap, or correct `key` of the field.",
        example=(
            'pod edge-6d9c7-x2x: MountVolume.SetUp failed for volume "refs" : references non-existent '
            "config key: ca.crt; add the key to the ConfigMap, or correct the field"
        ),
    ),
    ReasonRow(
        reason=Reason.MOUNT_FAILED,
        states=_UNRESOLVED,
        meaning=(
            "A volume of a pod cannot be mounted for another reason; the message has the kubelet's text."
        ),
        action="`kubectl describe pod POD` shows the events of the volume.",
        example=(
            'pod edge-6d9c7-x2x: MountVolume.SetUp failed for volume "refs" : failed to sync secret '
            "cache: timed out; kubectl describe pod shows the events of the volume"
        ),
    ),
    ReasonRow(
        reason=Reason.INVALID_CERTIFICATE,
        states=_UNRESOLVED,
        meaning=(
            "A pod cannot load a certificate or private key: it is not PEM, the two do not match, or "
            "OpenSSL refuses it. The pod keeps its previous configuration. If it is ready, `Stalled` and "
            "`Ready` have the reason ConfigRejected. Of a certificate that clients choose by name, the pod "
            "keeps the last good version, and the others are not affected."
        ),
        action="Renew the Secret. Pods load it without a restart, within about a minute.",
        example=(
            "pod edge-6d9c7-x2x: /etc/mailproxy/refs/secrets/mail-tls/tls.crt: the private key does not "
            "match; renew this Secret or ConfigMap, which pods load without a restart, or refer to "
            "another one"
        ),
    ),
    ReasonRow(
        reason=Reason.INVALID_BACKEND_TLS_POLICY,
        states=_UNRESOLVED,
        meaning=(
            "The BackendTLSPolicy of the Service in `proxySslService` cannot be used, or a ConfigMap that it "
            "refers to does not exist. The status of the policy has the same cause."
        ),
        action=(
            "Correct the policy, or set `proxySsl`: "
            "[upstreams.md](../upstreams.md#on-kubernetes-condition-events-backendtlspolicy)."
        ),
        example=(
            "BackendTLSPolicy dovecot: caCertificateRefs: ConfigMap mail-ca does not exist; create it with "
            "the key ca.crt"
        ),
    ),
    # -- Available -------------------------------------------------------------
    ReasonRow(
        reason=Reason.MINIMUM_REPLICAS_AVAILABLE,
        states=(("Available", "True"),),
        meaning="Enough pods are ready.",
        example="2 of 2 pods are available",
    ),
    ReasonRow(
        reason=Reason.SCALED_TO_ZERO,
        states=(("Available", "True"),),
        meaning="`spec.replicas` is 0: no pods are expected, and clients are not served.",
        action="Set `spec.replicas`, if clients are to be served.",
        example="no pods are expected: spec.replicas is 0",
    ),
    ReasonRow(
        reason=Reason.SIDECAR_MODE,
        states=(("Available", "True"),),
        meaning="`spec.mode` is `Sidecar`; the message counts the pods with the proxy.",
        action=(
            "If it counts pods that were created before the last change, delete these pods: a sidecar is "
            "replaced only together with its pod."
        ),
        example="pods with the sidecar: 2, ready: 2",
    ),
    ReasonRow(
        reason=Reason.PODS_NOT_READY,
        states=_UNAVAILABLE,
        meaning="Not enough pods are ready. During a rollout this is normal.",
        action=(
            "If it lasts, `kubectl get pods` and `kubectl logs POD` show why. `CrashLoopBackOff`: the "
            "last lines of the log are the error."
        ),
        example="pod edge-6d9c7-x2x: CrashLoopBackOff back-off 10s restarting failed container",
        is_transient=True,
    ),
    ReasonRow(
        reason=Reason.PODS_REFUSED,
        states=_UNAVAILABLE,
        meaning=(
            "The API server refuses the pods of the Deployment or DaemonSet: a quota, Pod Security, or an"
            " admission webhook."
        ),
        action="Change the quota or the policy, or the field of `spec` that it refuses.",
        example=(
            'pods "edge-6d9c7-" is forbidden: exceeded quota: mail, requested: pods=1, used: pods=10; '
            "change the quota or the policy of the namespace, or the field of spec"
        ),
    ),
    ReasonRow(
        reason=Reason.IMAGE_PULL_FAILED,
        states=_UNAVAILABLE,
        meaning="A node cannot pull the image of the proxy.",
        action=(
            "Correct `spec.image` (or the chart value `proxyImage`), or the Secret in "
            "`spec.imagePullSecrets`. Until a release is published, [images.md](../images.md) describes "
            "where images come from."
        ),
        example=(
            'pod edge-6d9c7-x2x: Back-off pulling image "registry.example/mailproxy"; correct spec.image,'
            " or the Secret of the registry in spec.imagePullSecrets"
        ),
    ),
    ReasonRow(
        reason=Reason.UNSCHEDULABLE,
        states=_UNAVAILABLE,
        meaning="The scheduler finds no node for a pod; the message has its text.",
        action=(
            "Change `spec.resources.requests`, `spec.pod.nodeSelector`, `spec.pod.affinity` or "
            "`spec.pod.tolerations`, or add a node."
        ),
        example=(
            "pod edge-6d9c7-x2x: 0/3 nodes are available: 3 Insufficient cpu; change "
            "spec.resources.requests, spec.pod.nodeSelector, spec.pod.affinity or spec.pod.tolerations, "
            "or add a node"
        ),
    ),
    ReasonRow(
        reason=Reason.NO_NODES,
        states=_UNAVAILABLE,
        meaning="`spec.mode` is `DaemonSet`, and no node is eligible for a pod.",
        action=(
            "Change `spec.pod.nodeSelector`, `spec.pod.affinity` or `spec.pod.tolerations`, or label a node."
        ),
        example=(
            "no node matches spec.pod.nodeSelector and spec.pod.affinity, or all nodes have taints that "
            "spec.pod.tolerations does not tolerate; change these fields, or add a node"
        ),
    ),
    ReasonRow(
        reason=Reason.SIDECAR_MISSING,
        states=_UNAVAILABLE,
        meaning=(
            "Pods have the label `mailproxy.dev/inject` and run without the proxy. They were created "
            "while the webhook was not reachable, or the proxy could not be injected."
        ),
        action=(
            "Read the events of the pods and of the MailProxy ([below](#events-about-sidecars)), correct "
            "the cause, then delete the pods, so that their workload creates them again."
        ),
        example=(
            "1 pod requests the sidecar and runs without it: dovecot-1; it is injected only when a pod is "
            "created: read the events, then delete the pods; pods with the sidecar: 1, ready: 1"
        ),
    ),
    ReasonRow(
        reason=Reason.PROGRESS_DEADLINE_EXCEEDED,
        states=(*_UNAVAILABLE, ("Stalled", "True")),
        meaning=(
            "New pods have not become ready within 10 minutes. Pods of the previous template keep serving."
        ),
        action="`kubectl get pods` and `kubectl describe pod POD` show why the new pods are not ready.",
        example=(
            'ReplicaSet "edge-6d9c7" has timed out progressing; pods do not become ready: kubectl get '
            "pods and kubectl describe pod show why"
        ),
    ),
    # -- ConfigSynced ----------------------------------------------------------
    ReasonRow(
        reason=Reason.ALL_PODS_SYNCED,
        states=(("ConfigSynced", "True"),),
        meaning="Every ready pod reports that it runs the newest configuration.",
        example="2 of 2 ready pods run configuration 3f6b8a1c09d2",
    ),
    ReasonRow(
        reason=Reason.CONFIG_PROPAGATING,
        states=(("ConfigSynced", "False"), ("Reconciling", "True")),
        meaning=(
            "Some ready pods run an older configuration. A changed ConfigMap takes up to a minute to "
            "reach a pod."
        ),
        action="Wait. After some minutes, read the log of the pod.",
        example="1 of 2 ready pods run configuration 3f6b8a1c09d2",
        is_transient=True,
    ),
    ReasonRow(
        reason=Reason.PODS_UNREACHABLE,
        states=(("ConfigSynced", "Unknown"),),
        meaning=(
            "The operator gets no response from the admin endpoint of a ready pod. Clients may still be "
            "served."
        ),
        action="Allow connections from the operator's pods to port 9113 of the proxies in NetworkPolicies.",
        example=(
            "no response from the admin endpoint (port 9113) of edge-6d9c7-8hk; check the NetworkPolicies"
            " between the operator and these pods"
        ),
    ),
    ReasonRow(
        reason=Reason.CONFIG_REJECTED,
        states=(("ConfigSynced", "False"), ("Stalled", "True")),
        meaning=(
            "A pod could not load the newest configuration, and continues with the previous one. The "
            "operator polls pods every 30 seconds."
        ),
        action=(
            "Correct the field or the file in the message; the log of the pod has it as "
            "`configuration_refused`."
        ),
        example=(
            "pod edge-6d9c7-8hk keeps its previous configuration: *:143: address in use; correct this, and"
            " the pod loads the new configuration without a restart"
        ),
    ),
    *UPSTREAM_TLS,
    *ROUTES,
    *GROUPS,
    # -- Reconciling -----------------------------------------------------------
    ReasonRow(
        reason=Reason.ROLLING_OUT,
        states=(("Reconciling", "True"),),
        meaning="Pods are being created or replaced.",
        action="Wait. If a pod does not start, the message has the cause.",
        example=(
            "1 of 2 pods have the newest template; pod edge-7f5b2-qqq: 0/3 nodes are available; change "
            "spec.resources.requests, spec.pod.nodeSelector, spec.pod.affinity or spec.pod.tolerations, "
            "or add a node"
        ),
    ),
    ReasonRow(
        reason=Reason.RETRYING,
        states=(("Reconciling", "True"),),
        meaning="A request to the API server has failed, and is repeated with increasing pauses.",
        action="If it lasts, check the API server; the message has its text.",
        example="Deployment mail/edge: etcdserver: request timed out",
    ),
    ReasonRow(
        reason=Reason.PAUSED,
        states=(("Reconciling", "False"),),
        meaning="`spec.paused` is true: the operator updates the status, and changes nothing else.",
        action="Set `spec.paused: false` to continue.",
        example=(
            "spec.paused is true: the operator writes only the status; set it to false to apply changes "
            "of the resource"
        ),
    ),
    ReasonRow(
        reason=Reason.SETTLED,
        states=(("Reconciling", "False"),),
        meaning="Nothing is in progress.",
        example="all objects and pods match the resource",
    ),
    # -- Stalled ---------------------------------------------------------------
    ReasonRow(
        reason=Reason.SYSCTL_FORBIDDEN,
        states=(("Stalled", "True"),),
        meaning=(
            "A node has refused a pod because of an unsafe sysctl. The operator has removed this sysctl "
            "from the pod template, until the resource changes."
        ),
        action=(
            "Allow the sysctl on the nodes (kubelet `allowedUnsafeSysctls`) and change the resource, or "
            "do not request it: [ports-and-sysctls.md](../ports-and-sysctls.md)."
        ),
        example=(
            "nodes refuse the sysctl net.core.somaxconn; pods run without it; add it to the kubelet's "
            "allowedUnsafeSysctls on the nodes that spec.pod.nodeSelector selects, or set "
            "spec.sysctls.unsafe: Forbid"
        ),
    ),
    ReasonRow(
        reason=Reason.NOT_STALLED,
        states=(("Stalled", "False"),),
        meaning="No change by a user is needed.",
        example="no change by a user is needed",
    ),
)
"""Every reason of a condition, in the order of the page."""
