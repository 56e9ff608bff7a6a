# SPDX-License-Identifier: Apache-2.0
"""The tables of reasons: every row is what the operator writes, and the operator writes nothing else."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.protocols.upstream_tls import injected, not_offered
from mailproxy_config.model import ListenConfig
from mailproxy_operator.api.api_errors import ApiResponse, error_from
from mailproxy_operator.api.cluster import Key, RunningConfig, UpstreamState
from mailproxy_operator.api.kinds import DEPLOYMENT, ENDPOINT_SLICE
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller import forbidden_sysctls
from mailproxy_operator.controller.conditions import Facts, conditions, evaluate_conditions
from mailproxy_operator.controller.observed import Observed, Pod, Workload
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.routes_ready import RouteFiles
from mailproxy_operator.controller.service_watch import ServiceWatch
from mailproxy_operator.errors import ConditionCause, ReportedCause, TransientError
from mailproxy_operator.members.endpoints import endpoints
from mailproxy_operator.members.groups import ServiceGroup, ServiceState
from mailproxy_operator.members.member_lists import members
from mailproxy_operator.reasons import (
    EventReason,
    InjectionReason,
    PolicyReason,
    Reason,
    RouteEventReason,
    SysctlReason,
    UpstreamEventReason,
)
from mailproxy_operator.reasons.other_tables import (
    CERTIFICATE_EVENTS,
    INJECTION,
    POLICIES,
    ROUTE_EVENTS,
    SIDECAR_EVENTS,
    SYSCTLS,
    UPSTREAM_EVENTS,
)
from mailproxy_operator.reasons.page import reference
from mailproxy_operator.reasons.rows import ReasonRow
from mailproxy_operator.reasons.table import CONDITIONS, REASONS, all_states, event_type
from mailproxy_operator.render.sysctls import Policy, sysctls
from mailproxy_operator.settings import Platform
from support import reasons_page
from support.backend_tls import policy
from support.endpoint_slices import endpoint, service, slice_of
from support.operator_bodies import body, server
from support.operator_cluster import MemoryCluster

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted((ROOT / "operator/mailproxy_operator").rglob("*.py"))
DIGEST: Final = "3f6b8a1c09d2e457"
EDGE: Final = Key("mail", "edge")
Conditions = dict[str, dict[str, Any]]


def pod(name: str = "edge-6d9c7-x2x", **more: Any) -> Pod:
    running = RunningConfig(DIGEST)
    return Pod(**{"name": name, "is_ready": True, "has_started": True, "running": running, **more})


def starting_pod(**more: Any) -> Pod:
    return pod(**{"is_ready": False, "has_started": False, "running": None, **more})


SERVING: Final = Workload(desired=2, replicas=2, updated=2, ready=2, available=2)
STARTING: Final = Workload(desired=2, replicas=2, updated=2)
TWO_PODS: Final = (pod(), pod("edge-6d9c7-8hk"))


def evaluated(workload: Workload | None = SERVING, *pods: Pod, **more: Any) -> Conditions:
    observed = Observed(
        workload=workload,
        pods=pods or TWO_PODS,
        mount_failures=more.pop("mounts", {}),
        without_sidecar=more.pop("without", ()),
    )
    facts = Facts(
        **{"generation": 1, "mode": "Deployment", "observed": observed, "config_hash": DIGEST, **more}
    )
    listed = conditions(evaluate_conditions(facts), generation=1, previous=[], now="now")
    return {str(one["type"]): one for one in listed}


NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def upstream(port: int = 993, failure: str = "", message: str = "", **more: Any) -> Conditions:
    """A pod reports this about its mail server."""
    state = UpstreamState(
        server="imap",
        state="failed" if failure else "succeeded",
        failure=failure,
        upstream=f"192.0.2.7:{port}",
        message=message,
        **more,
    )
    running = RunningConfig(DIGEST, upstreams=(state,))
    return evaluated(SERVING, pod(running=running), tls_servers=frozenset({"imap"}), now=NOW)


def not_accepted(failure: str, reason: str) -> Conditions:
    return upstream(failure=failure, message=f"certificate not accepted: {reason}")


REFS: Final = "/etc/mailproxy-refs"
ROUTE_FILES: Final = RouteFiles(
    frozenset({f"{REFS}/configmaps/moves/users"}), frozenset({f"{REFS}/secrets/users/htpasswd"})
)
ROUTE_FIELDS: Final = {
    ("ConfigMap", "moves"): ("spec.mail.routes[0].table.configMapKeyRef",),
    ("Secret", "users"): ("spec.mail.authUserFile.secretKeyRef",),
}


def routed(*pods: Pod, missing: str = "", **reported: tuple[str, ...]) -> Conditions:
    """A pod reports these lines of files, or does not start."""
    one = starting_pod() if missing else pod(running=RunningConfig(DIGEST, **reported))
    mounts = {one.name: f'MountVolume.SetUp failed for volume "refs" : {missing}'} if missing else {}
    return evaluated(
        SERVING, *(pods or (one,)), mounts=mounts, route_files=ROUTE_FILES, reference_paths=ROUTE_FIELDS
    )


def with_service(*given: Any, port: int = 143, total: int = 0) -> Conditions:
    """A group is a Service with these endpoints; ``total`` ready ones instead."""
    many = [endpoint(number, address=f"10.0.{number // 200}.{number % 200}") for number in range(total)]
    of = service(ports=[("imap", port, "TCP")])
    return with_state(ServiceState(service=of, endpoints=endpoints([slice_of(*given, *many)])))


def with_state(state: ServiceState, namespace: str = "mail") -> Conditions:
    key = Key(namespace, "dovecot")
    group = ServiceGroup(
        name="dovecot", service=key, ports=frozenset({"143"}), needed=frozenset({"143"}), grace=60.0
    )
    return evaluated(groups=members([group], {key: state}, "", NOW.timestamp()).groups)


async def unread_service(namespace: str, failure: Exception) -> Conditions:
    """The watch of a Service fails at first."""

    class Reader:
        async def service(self, key: Key) -> None:
            raise failure

        async def slices(self, key: Key) -> tuple[list[Any], str]:
            raise failure

        async def watch(self, key: Key, version: str) -> AsyncIterator[tuple[str, Any]]:
            raise failure
            yield

    key, watch = Key(namespace, "dovecot"), ServiceWatch(Reader(), lambda _: None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        found = await watch.read(EDGE, frozenset({key}))
        running.cancel()
    return with_state(found[key], namespace)


def failing(kind: str, reason: str, message: str) -> Workload:
    return Workload(desired=2, failures={kind: ReportedCause(reason, message)})


def mount(message: str, paths: dict[tuple[str, str], tuple[str, ...]] | None = None) -> Conditions:
    text = f'MountVolume.SetUp failed for volume "refs" : {message}'
    one = starting_pod()
    return evaluated(STARTING, one, mounts={one.name: text}, reference_paths=paths or {})


async def reconciled(cluster: MemoryCluster | None = None, **spec: Any) -> Conditions:
    """Reconcile a resource, and return the conditions that were written."""
    cluster = cluster or MemoryCluster()
    cluster.put(body(**spec))
    reconciler = Reconciler(cluster, Platform(), now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    await reconciler.reconcile(EDGE)
    return {one["type"]: one for one in cluster.found_status("edge")["conditions"]}


async def refused(status: int, message: str) -> Conditions:
    cluster = MemoryCluster()
    answer = ApiResponse(status, {"kind": "Status", "message": message})
    cluster.failures["Deployment"] = error_from(answer, DEPLOYMENT, "Deployment mail/edge")
    return await reconciled(cluster)


async def foreign_service() -> Conditions:
    cluster = MemoryCluster()
    metadata = {"name": "edge", "namespace": "mail"}
    cluster.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}})
    return await reconciled(cluster)


WITH_POLICY: Final = {
    "authHttp": "http://auth/",
    "proxySsl": "Enabled",
    "proxySslService": {"name": "dovecot"},
}


def policy_without_config_map() -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.put(policy())
    return cluster


def same_port() -> dict[str, Any]:
    return {"servers": [server("imap", "imap", 143), server("imap2", "imap", 143)]}


def at_once(found: Callable[[], Conditions]) -> Callable[[], Awaitable[Conditions]]:
    async def situation() -> Conditions:
        return found()

    return situation


TLS_PATHS: Final = {("Secret", "mail-tls"): ("spec.mail.sslCertificate[0].secretName",)}
CA_PATHS: Final = {("ConfigMap", "clients"): ("spec.mail.sslClientCertificate.configMapKeyRef",)}
OLD: Final = RunningConfig("0" * 16)
QUOTA: Final = 'pods "edge-6d9c7-" is forbidden: exceeded quota: mail, requested: pods=1, used: pods=10'

SITUATIONS: Final[dict[Reason, Callable[[], Awaitable[Conditions]]]] = {
    Reason.READY: at_once(evaluated),
    Reason.ACCEPTED: at_once(
        lambda: evaluated(
            notices=("spec.replicas is not used: the autoscaler decides how many pods there are",)
        )
    ),
    Reason.INVALID_SPEC: lambda: reconciled(mail={"authHttp": "http://auth/", "timeout": "soon"}),
    Reason.LISTENER_CONFLICT: lambda: reconciled(**same_port()),
    Reason.NAME_CONFLICT: foreign_service,
    Reason.INVALID_POD_FIELDS: lambda: refused(
        422,
        'Deployment.apps "edge" is invalid: spec.template.spec.priorityClassName: Invalid value: "Mail": '
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
    ),
    Reason.FORBIDDEN: lambda: refused(
        403, 'deployments.apps "edge" is forbidden: exceeded quota: mail, requested: count/deployments.apps=1'
    ),
    Reason.RESOLVED_REFS: at_once(evaluated),
    Reason.NOT_YET_MOUNTED: at_once(lambda: evaluated(STARTING, starting_pod(), has_references=True)),
    Reason.SECRET_NOT_FOUND: at_once(lambda: mount('secret "mail-tls" not found', TLS_PATHS)),
    Reason.SECRET_KEY_NOT_FOUND: at_once(lambda: mount("references non-existent secret key: tls.crt")),
    Reason.CONFIG_MAP_NOT_FOUND: at_once(lambda: mount('configmap "clients" not found', CA_PATHS)),
    Reason.CONFIG_MAP_KEY_NOT_FOUND: at_once(lambda: mount("references non-existent config key: ca.crt")),
    Reason.MOUNT_FAILED: at_once(lambda: mount("failed to sync secret cache: timed out")),
    Reason.INVALID_CERTIFICATE: at_once(
        lambda: evaluated(
            SERVING,
            pod(
                running=RunningConfig(
                    OLD.hash, "/etc/mailproxy/refs/secrets/mail-tls/tls.crt: the private key does not match"
                ),
                is_ready=False,
            ),
        )
    ),
    Reason.INVALID_BACKEND_TLS_POLICY: lambda: reconciled(policy_without_config_map(), mail=WITH_POLICY),
    Reason.MINIMUM_REPLICAS_AVAILABLE: at_once(evaluated),
    Reason.SCALED_TO_ZERO: at_once(lambda: evaluated(Workload(desired=0))),
    Reason.SIDECAR_MODE: at_once(lambda: evaluated(None, *TWO_PODS, mode="Sidecar")),
    Reason.PODS_NOT_READY: at_once(
        lambda: evaluated(
            STARTING,
            pod(
                is_ready=False,
                waiting=ReportedCause("CrashLoopBackOff", "back-off 10s restarting failed container"),
            ),
        )
    ),
    Reason.PODS_REFUSED: at_once(lambda: evaluated(failing("ReplicaFailure", "FailedCreate", QUOTA))),
    Reason.IMAGE_PULL_FAILED: at_once(
        lambda: evaluated(
            STARTING,
            starting_pod(
                waiting=ReportedCause(
                    "ImagePullBackOff", 'Back-off pulling image "registry.example/mailproxy"'
                )
            ),
        )
    ),
    Reason.UNSCHEDULABLE: at_once(
        lambda: evaluated(
            STARTING,
            starting_pod(
                unscheduled=ReportedCause("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")
            ),
        )
    ),
    Reason.NO_NODES: at_once(lambda: evaluated(Workload(desired=0, is_per_node=True), mode="DaemonSet")),
    Reason.SIDECAR_MISSING: at_once(
        lambda: evaluated(None, pod("dovecot-0"), mode="Sidecar", without=("dovecot-1",))
    ),
    Reason.PROGRESS_DEADLINE_EXCEEDED: at_once(
        lambda: evaluated(
            failing(
                "Progressing",
                "ProgressDeadlineExceeded",
                'ReplicaSet "edge-6d9c7" has timed out progressing.',
            )
        )
    ),
    Reason.ALL_PODS_SYNCED: at_once(evaluated),
    Reason.CONFIG_PROPAGATING: at_once(lambda: evaluated(SERVING, pod(), pod("edge-6d9c7-8hk", running=OLD))),
    Reason.PODS_UNREACHABLE: at_once(lambda: evaluated(SERVING, pod(), pod("edge-6d9c7-8hk", running=None))),
    Reason.CONFIG_REJECTED: at_once(
        lambda: evaluated(
            SERVING, pod(), pod("edge-6d9c7-8hk", running=RunningConfig(OLD.hash, "*:143: address in use"))
        )
    ),
    Reason.UPSTREAM_TLS_ESTABLISHED: at_once(upstream),
    Reason.UPSTREAM_CERTIFICATE_EXPIRING: at_once(
        lambda: upstream(certificate_expires=datetime(2026, 1, 4, 12, tzinfo=UTC))
    ),
    Reason.NO_UPSTREAM_TLS_YET: at_once(lambda: evaluated(tls_servers=frozenset({"imap"}))),
    Reason.UPSTREAM_NAME_MISMATCH: at_once(
        lambda: not_accepted(
            "name", '"192.0.2.7" is not among its names (DNS:imap.example.com): set proxySslName'
        )
    ),
    Reason.UPSTREAM_CERTIFICATE_NOT_TRUSTED: at_once(
        lambda: not_accepted(
            "verify",
            "unable to get local issuer certificate (its names: DNS:imap.example.com): "
            "set proxySslTrustedCertificate",
        )
    ),
    Reason.UPSTREAM_CERTIFICATE_EXPIRED: at_once(lambda: not_accepted("expired", "certificate has expired")),
    Reason.UPSTREAM_TLS_NOT_OFFERED: at_once(
        lambda: upstream(143, "stripped", str(not_offered(b"", "STARTTLS")))
    ),
    Reason.UPSTREAM_BYTES_INJECTED: at_once(lambda: upstream(143, "injected", str(injected("STARTTLS")))),
    Reason.UPSTREAM_TLS_INCOMPATIBLE: at_once(
        lambda: upstream(143, "protocol", "TLS handshake failed: wrong version number")
    ),
    Reason.UPSTREAM_TLS_REFUSED: at_once(
        lambda: upstream(993, "refused", "TLS handshake failed: tlsv13 alert certificate required")
    ),
    Reason.UPSTREAM_TLS_TIMEOUT: at_once(lambda: upstream(993, "timeout", "TLS handshake timed out")),
    Reason.ROUTES_LOADED: at_once(routed),
    Reason.ROUTES_NOT_REPORTED: at_once(lambda: routed(starting_pod())),
    Reason.ROUTE_OBJECT_NOT_FOUND: at_once(lambda: routed(missing='configmap "moves" not found')),
    Reason.ROUTE_KEY_NOT_FOUND: at_once(
        lambda: routed(missing="configmap references non-existent config key: users")
    ),
    Reason.ROUTE_TABLE_REFUSED: at_once(
        lambda: routed(
            route_tables=(
                f"{REFS}/configmaps/moves/users:3: the upstream is not in spec.upstreams (new, old)",
            )
        )
    ),
    Reason.USER_LIST_REFUSED: at_once(
        lambda: routed(
            user_files=(
                f"{REFS}/secrets/users/htpasswd:2: the user is already in line 1: remove one of the two",
            )
        )
    ),
    Reason.MEMBERS_READY: at_once(
        lambda: with_service(*map(endpoint, range(5)), endpoint(5, ready=False, serving=False))
    ),
    Reason.NO_READY_MEMBERS: at_once(lambda: with_service(endpoint(0, ready=False, serving=False))),
    Reason.SERVICE_NOT_FOUND: at_once(lambda: with_state(ServiceState())),
    Reason.PORT_NOT_FOUND: at_once(lambda: with_service(endpoint(0), port=1143)),
    Reason.TOO_MANY_MEMBERS: at_once(lambda: with_service(total=1200)),
    Reason.ENDPOINTS_FORBIDDEN: lambda: unread_service(
        "other",
        error_from(
            ApiResponse(403, {"kind": "Status", "message": "endpointslices.discovery.k8s.io is forbidden"}),
            ENDPOINT_SLICE,
            "the list of endpointslices",
        ),
    ),
    Reason.ENDPOINTS_UNKNOWN: lambda: unread_service(
        "mail", TransientError("GET /apis/discovery.k8s.io/v1/namespaces/mail/endpointslices: timeout")
    ),
    Reason.ROLLING_OUT: at_once(
        lambda: evaluated(
            Workload(desired=2, replicas=3, updated=1, ready=2, available=2),
            *TWO_PODS,
            starting_pod(
                name="edge-7f5b2-qqq", unscheduled=ReportedCause("Unschedulable", "0/3 nodes are available.")
            ),
        )
    ),
    Reason.RETRYING: at_once(
        lambda: evaluated(
            retrying=ConditionCause(Reason.RETRYING, "Deployment mail/edge: etcdserver: request timed out")
        )
    ),
    Reason.PAUSED: at_once(lambda: evaluated(paused=True)),
    Reason.SETTLED: at_once(evaluated),
    Reason.SYSCTL_FORBIDDEN: at_once(
        lambda: evaluated(sysctl_refused=forbidden_sysctls.finding(frozenset({"net.core.somaxconn"})))
    ),
    Reason.NOT_STALLED: at_once(evaluated),
}
"""A situation for each reason; the resource has the same name, and the objects are like, in all of them."""


def test_every_reason_has_a_row_and_a_situation() -> None:
    assert [row.reason for row in REASONS] == list(Reason)
    assert SITUATIONS.keys() == set(Reason)
    assert [row.reason for row in SYSCTLS] == list(SysctlReason)
    assert [row.reason for row in (*CERTIFICATE_EVENTS, *SIDECAR_EVENTS)] == list(EventReason)
    assert [row.reason for row in INJECTION] == list(InjectionReason)
    assert [row.reason for row in POLICIES] == list(PolicyReason)
    assert [row.reason for row in ROUTE_EVENTS] == list(RouteEventReason)
    assert [row.reason for row in UPSTREAM_EVENTS] == list(UpstreamEventReason)


@pytest.mark.parametrize("row", REASONS, ids=lambda row: row.reason)
async def test_operator_writes_state_and_example_of_every_row(row: ReasonRow) -> None:
    found = await SITUATIONS[row.reason]()
    written = {(name, found[name]["status"], found[name]["reason"]) for name, _ in all_states(row)}
    assert written == {(name, status, row.reason) for name, status in all_states(row)}
    assert found[row.states[0][0]]["message"] == row.example


@pytest.mark.parametrize("row", REASONS, ids=lambda row: row.reason)
def test_row_of_unhealthy_state_has_an_action(row: ReasonRow) -> None:
    healthy = {one.name: one.good for one in CONDITIONS}
    is_healthy = all(healthy[name] == status for name, status in row.states)
    assert is_healthy or row.action
    assert row.meaning.endswith((".", ")"))


def test_event_type_follows_ready() -> None:
    types = {row.reason: event_type(row) for row in REASONS}
    assert types[Reason.READY] == "Normal"
    assert types[Reason.INVALID_SPEC] == types[Reason.SYSCTL_FORBIDDEN] == "Warning"
    assert types[Reason.CONFIG_PROPAGATING] == "Normal during a rollout, otherwise Warning"
    assert types[Reason.SETTLED] == ""


def test_examples_of_sysctls_are_messages_of_the_code() -> None:
    """``NodeTooOld`` and the others are decided for nodes of Kubernetes 1.29."""
    old = KubeVersion(1, 29)
    listen = [ListenConfig(port=143, backlog=8192, rcvbuf=1 << 20)]
    policies = {
        SysctlReason.HOST_NETWORK: Policy(host_network=True),
        SysctlReason.MODE_NONE: Policy(automatic=False),
        SysctlReason.SYSCTL_FORBIDDEN: Policy(unsafe_allowed=True, refused=frozenset({"net.core.somaxconn"})),
        SysctlReason.UNSAFE_NOT_ALLOWED: Policy(),
        SysctlReason.NODE_TOO_OLD: Policy(),
    }
    examples = {row.reason: row.example for row in SYSCTLS}
    for reason, one_policy in policies.items():
        found = {one.reason: one.message for one in sysctls(listen, one_policy, old, privileged_port=143)}
        assert found[reason] == examples[reason]


def test_page_is_current() -> None:
    assert reasons_page.PAGE.read_text() == reference(), "make generate"


# -- the operator's code takes every reason from the tables -----------------------

_WITH_REASON: Final = {
    "ConditionState": 1, "ConditionCause": 0, "TerminalError": 1, "InjectionRefusal": 0,
}  # fmt: skip
"""The position of the reason among the arguments of a class."""


def _literal_reasons(path: Path) -> list[str]:
    """The places where a reason is given as a text instead of a member of a table's enumeration."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _WITH_REASON:
            given += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            given += node.args[_WITH_REASON[node.func.id] :][:1]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            given += [
                value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "reason"
            ]
        found += [
            f"{path.name}:{one.lineno}" for one in given if isinstance(one, ast.Constant | ast.JoinedStr)
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_reason_is_a_literal_text(path: Path) -> None:
    assert _literal_reasons(path) == []


def test_literal_reason_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'ConditionState("True", "New", "m")\nTerminalError("m", reason="New")\n{"reason": "New"}\n'
    )
    assert _literal_reasons(path) == ["module.py:1", "module.py:2", "module.py:3"]


def test_every_reason_is_used_by_the_code() -> None:
    """A reason that no code writes would be described for nothing."""
    code = "".join(path.read_text() for path in SOURCES if path.parent.name != "reasons")
    kinds = (Reason, SysctlReason, EventReason, InjectionReason, UpstreamEventReason, PolicyReason)
    members = [member for kind in kinds for member in kind]
    unused = [
        f"{type(member).__name__}.{member.name}"
        for member in members
        if f"{type(member).__name__}.{member.name}" not in code
    ]
    assert unused == []
