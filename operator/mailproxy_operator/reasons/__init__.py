# SPDX-License-Identifier: Apache-2.0
"""Every reason that the operator writes into conditions, ``status.sysctls`` and events.

The values are public names: users, alerts and scripts compare them.  ``table`` describes each one, and
``page`` generates ``docs/reference/conditions.md`` from the table.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of conditions, and of the events about a change of ``Ready``."""

    READY = "Ready"
    # Accepted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    LISTENER_CONFLICT = "ListenerConflict"
    NAME_CONFLICT = "NameConflict"
    INVALID_POD_FIELDS = "InvalidPodFields"
    FORBIDDEN = "Forbidden"
    # ResolvedRefs
    RESOLVED_REFS = "ResolvedRefs"
    NOT_YET_MOUNTED = "NotYetMounted"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105  the name of a reason
    SECRET_KEY_NOT_FOUND = "SecretKeyNotFound"  # noqa: S105
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CONFIG_MAP_KEY_NOT_FOUND = "ConfigMapKeyNotFound"
    MOUNT_FAILED = "MountFailed"
    INVALID_CERTIFICATE = "InvalidCertificate"
    INVALID_BACKEND_TLS_POLICY = "InvalidBackendTLSPolicy"
    # Available
    MINIMUM_REPLICAS_AVAILABLE = "MinimumReplicasAvailable"
    SCALED_TO_ZERO = "ScaledToZero"
    SIDECAR_MODE = "SidecarMode"
    PODS_NOT_READY = "PodsNotReady"
    PODS_REFUSED = "PodsRefused"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    NO_NODES = "NoNodes"
    SIDECAR_MISSING = "SidecarMissing"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    # ConfigSynced
    ALL_PODS_SYNCED = "AllPodsSynced"
    CONFIG_PROPAGATING = "ConfigPropagating"
    PODS_UNREACHABLE = "PodsUnreachable"
    CONFIG_REJECTED = "ConfigRejected"
    # UpstreamTLSReady
    UPSTREAM_TLS_ESTABLISHED = "UpstreamTLSEstablished"
    UPSTREAM_CERTIFICATE_EXPIRING = "UpstreamCertificateExpiring"
    NO_UPSTREAM_TLS_YET = "NoUpstreamTLSYet"
    UPSTREAM_NAME_MISMATCH = "UpstreamNameMismatch"
    UPSTREAM_CERTIFICATE_NOT_TRUSTED = "UpstreamCertificateNotTrusted"
    UPSTREAM_CERTIFICATE_EXPIRED = "UpstreamCertificateExpired"
    UPSTREAM_TLS_NOT_OFFERED = "UpstreamTLSNotOffered"
    UPSTREAM_BYTES_INJECTED = "UpstreamBytesInjected"
    UPSTREAM_TLS_INCOMPATIBLE = "UpstreamTLSIncompatible"
    UPSTREAM_TLS_REFUSED = "UpstreamTLSRefused"
    UPSTREAM_TLS_TIMEOUT = "UpstreamTLSTimeout"
    # RoutesReady
    ROUTES_LOADED = "RoutesLoaded"
    ROUTES_NOT_REPORTED = "RoutesNotReported"
    ROUTE_OBJECT_NOT_FOUND = "RouteObjectNotFound"
    ROUTE_KEY_NOT_FOUND = "RouteKeyNotFound"
    ROUTE_TABLE_REFUSED = "RouteTableRefused"
    USER_LIST_REFUSED = "UserListRefused"
    # GroupsReady
    MEMBERS_READY = "MembersReady"
    NO_READY_MEMBERS = "NoReadyMembers"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    PORT_NOT_FOUND = "PortNotFound"
    TOO_MANY_MEMBERS = "TooManyMembers"
    ENDPOINTS_FORBIDDEN = "EndpointsForbidden"
    ENDPOINTS_UNKNOWN = "EndpointsUnknown"
    # Reconciling
    ROLLING_OUT = "RollingOut"
    RETRYING = "Retrying"
    PAUSED = "Paused"
    SETTLED = "Settled"
    # Stalled
    SYSCTL_FORBIDDEN = "SysctlForbidden"
    NOT_STALLED = "NotStalled"


class SysctlReason(StrEnum):
    """Reasons of entries of ``status.sysctls``: why a sysctl is applied, or why it is not."""

    PRIVILEGED_PORT = "PrivilegedPort"
    SO_KEEPALIVE = "SoKeepalive"
    RECEIVE_BUFFER = "ReceiveBuffer"
    SEND_BUFFER = "SendBuffer"
    BACKLOG = "Backlog"
    EXTRA = "Extra"
    CONFLICTING_LISTENERS = "ConflictingListeners"
    HOST_NETWORK = "HostNetwork"
    MODE_NONE = "ModeNone"
    SYSCTL_FORBIDDEN = "SysctlForbidden"
    UNSAFE_NOT_ALLOWED = "UnsafeNotAllowed"
    NODE_TOO_OLD = "NodeTooOld"


class EventReason(StrEnum):
    """Reasons of the events that are not about a change of ``Ready``."""

    CERTIFICATE_NOT_USED = "CertificateNotUsed"
    SIDECAR_MISSING = "SidecarMissing"
    SIDECAR_REFUSED = "SidecarRefused"


class UpstreamEventReason(StrEnum):
    """Reasons of the events about mail servers."""

    UPSTREAM_MISCONFIGURED = "UpstreamMisconfigured"


class RouteEventReason(StrEnum):
    """Reasons of the events about tables of routes and lists of users."""

    ROUTE_TABLE_REFUSED = "RouteTableRefused"
    USER_LIST_REFUSED = "UserListRefused"


class PolicyReason(StrEnum):
    """Reasons of conditions in ``status.ancestors`` of a BackendTLSPolicy; words of the Gateway API."""

    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"
    CONFLICTED = "Conflicted"
    INVALID = "Invalid"
    NO_VALID_CA_CERTIFICATE = "NoValidCACertificate"
    INVALID_CA_CERTIFICATE_REF = "InvalidCACertificateRef"
    INVALID_KIND = "InvalidKind"


class InjectionReason(StrEnum):
    """Why a pod gets no sidecar: the first word in the note of the event."""

    MAIL_PROXY_NOT_FOUND = "MailProxyNotFound"
    NOT_A_SIDECAR = "NotASidecar"
    NOT_SELECTED = "NotSelected"
    INVALID_SPEC = "InvalidSpec"
    LABEL_CONFLICT = "LabelConflict"
    WRONG_SYSTEM = "WrongSystem"
    NAME_CONFLICT = "NameConflict"
    PORT_CONFLICT = "PortConflict"
    HOST_NETWORK = "HostNetwork"
    SYSCTL_CONFLICT = "SysctlConflict"
