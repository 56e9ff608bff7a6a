# SPDX-License-Identifier: Apache-2.0
"""Refused tables of routes and lists of users become a condition and events, without names of users."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.routing.table_files import load_tables
from mailproxy.supervisor.status import Status
from mailproxy.users.user_files import load_users
from mailproxy_config.model import AuthMode, Protocol, ProxyConfig
from mailproxy_config.secret_refs import Mounts, ReferenceKind
from mailproxy_config.upstream_groups import GroupServer, Route, UpstreamGroup
from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.pod_report import read_config
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.routes_ready import RouteEvents, RouteFiles, routes_ready
from mailproxy_operator.reasons import Reason
from mailproxy_operator.settings import Platform
from support import configs
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster
from support.reasons_page import check_event
from support.worker_processes import make_revision

EDGE: Final = Key("mail", "edge")
NOW: Final = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
BODY: Final = {"metadata": {"name": "edge", "namespace": "mail", "uid": "u"}}
TABLE: Final = "/etc/mailproxy-refs/configmaps/moves/users"
USERS: Final = "/etc/mailproxy-refs/secrets/users/htpasswd"
FILES: Final = RouteFiles(frozenset({TABLE}), frozenset({USERS}))
FIELDS: Final = {
    ("ConfigMap", "moves"): ("spec.mail.routes[0].table.configMapKeyRef",),
    ("Secret", "users"): ("spec.mail.sslPasswordFile.secretKeyRef", "spec.mail.authUserFile.secretKeyRef"),
}
KEPT: Final = "pods use its last valid version until then, and load a corrected one without a restart"


def pod(name: str = "a", **more: Any) -> Pod:
    kept = {key: more.pop(key) for key in ("is_terminating", "has_started") if key in more}
    return Pod(name=name, running=RunningConfig("h", **more), **kept)


def test_resource_without_files_has_no_condition() -> None:
    assert routes_ready(Observed(pods=(pod(),)), RouteFiles(), {}) is None


def test_pods_without_refused_lines_are_good_and_silent_pods_are_unknown() -> None:
    assert routes_ready(Observed(pods=(pod(),)), FILES, {}) == (
        "True",
        Reason.ROUTES_LOADED,
        "pods use the newest tables of routes and lists of users",
    )
    found = routes_ready(Observed(pods=(Pod(name="a"), pod(is_terminating=True))), FILES, {})
    assert found is not None
    assert found[:2] == ("Unknown", Reason.ROUTES_NOT_REPORTED)


def test_invalid_resource_keeps_its_condition() -> None:
    broken = pod(route_tables=(f"{TABLE}:3: no",))
    assert routes_ready(Observed(pods=(broken,)), None, FIELDS) == (
        "False",
        Reason.ROUTE_TABLE_REFUSED,
        f"pod a: ConfigMap moves, key users, line 3: no; correct it ({FIELDS['ConfigMap', 'moves'][0]}); "
        + KEPT,
    )


def test_message_has_object_key_line_field_and_number_of_lines() -> None:
    lines = (f"{USERS}:2: the hash is too weak", f"{USERS}:7: a line is user:hash")
    found = routes_ready(Observed(pods=(pod(), pod("b", user_files=lines))), FILES, FIELDS)
    assert found == (
        "False",
        Reason.USER_LIST_REFUSED,
        "pod b: Secret users, key htpasswd, line 2: the hash is too weak (invalid lines: 2); "
        f"correct it (spec.mail.authUserFile.secretKeyRef); {KEPT}",
    )


def test_key_that_was_removed_is_named() -> None:
    gone = pod(route_tables=(f"{TABLE}: cannot be read: No such file or directory",))
    found = routes_ready(Observed(pods=(gone,)), FILES, FIELDS)
    assert found == (
        "False",
        Reason.ROUTE_KEY_NOT_FOUND,
        "pod a: ConfigMap moves has no key users; add it, or correct "
        f"spec.mail.routes[0].table.configMapKeyRef; {KEPT}",
    )


def test_configuration_that_is_refused_because_of_a_table_is_a_finding() -> None:
    error = f"{TABLE}:2: the upstream is not in spec.upstreams (old); {TABLE}:3: the same"
    found = routes_ready(Observed(pods=(pod(last_error=error),)), FILES, FIELDS)
    assert found is not None
    assert found[1] is Reason.ROUTE_TABLE_REFUSED
    assert "line 2: the upstream is not in spec.upstreams (old); correct it" in found[2]
    assert found[2].endswith(
        "the pod keeps its previous configuration, and loads a corrected file without a restart"
    )
    other = routes_ready(Observed(pods=(pod(last_error="*:143: address in use"),)), FILES, FIELDS)
    assert other is not None
    assert other[0] == "True"


def test_table_that_keeps_a_pod_from_its_start_is_a_finding() -> None:
    message = f"{USERS}:1: a line is user:hash; {USERS}:2: the same"
    ended = Pod(name="a", has_started=True, exit_message=message)
    found = routes_ready(Observed(pods=(ended,)), FILES, FIELDS)
    assert found == (
        "False",
        Reason.USER_LIST_REFUSED,
        "pod a: Secret users, key htpasswd, line 1: a line is user:hash; "
        "correct it (spec.mail.authUserFile.secretKeyRef); the pod starts when it is corrected",
    )


def test_missing_object_of_another_field_is_no_finding() -> None:
    starting = Pod(name="a")
    for message in ('secret "mail-tls" not found', "references non-existent secret key: tls.crt"):
        found = routes_ready(Observed(pods=(starting,), mount_failures={"a": message}), FILES, FIELDS)
        assert found is not None
        assert found[1] is Reason.ROUTES_NOT_REPORTED


def test_event_of_each_file_comes_once_an_hour_until_the_line_changes() -> None:
    events = RouteEvents()
    lines = (f"{TABLE}:3: no", f"{TABLE}:4: no")
    observed = Observed(
        pods=(pod(route_tables=lines), pod("b", route_tables=lines, user_files=(f"{USERS}:1: x",)))
    )
    found = events.due(EDGE, BODY, observed, NOW)
    assert [(one["reason"], one["note"]) for one in found] == [
        (
            "RouteTableRefused",
            f"ConfigMap moves, key users, line 3: no (invalid lines: 2); correct it: {KEPT}",
        ),
        ("UserListRefused", f"Secret users, key htpasswd, line 1: x; correct it: {KEPT}"),
    ]
    for event in found:
        check_event(event)
    assert events.due(EDGE, BODY, observed, NOW + timedelta(minutes=59)) == []
    [again] = events.due(EDGE, BODY, Observed(pods=(pod(route_tables=(f"{TABLE}:5: no",)),)), NOW)
    assert "line 5" in again["note"]


def mounted(tmp_path: Path, kind: ReferenceKind, name: str, key: str, text: str) -> Path:
    path = Path(Mounts(str(tmp_path)).directory(kind, name)) / key
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_report_of_the_proxy_has_no_name_of_a_user(tmp_path: Path) -> None:
    """What the proxy reports about real files is what the operator shows."""
    table = mounted(tmp_path, ReferenceKind.CONFIG_MAP, "moves", "users", "bob@example.org old\n")
    users = mounted(
        tmp_path, ReferenceKind.SECRET, "users", "htpasswd", f"ann@example.org:$2b$05${'a' * 53}\n"
    )
    group = UpstreamGroup(name="old", servers=(GroupServer(address="a", host="a"),))
    routed = {"upstream_groups": (group,), "route": (Route(table=str(table)),), "auth_http": None}
    fields = {"auth_mode": AuthMode.STATIC, "auth_user_file": str(users), **routed}
    config = ProxyConfig(servers=(configs.server(Protocol.IMAP, **fields),))
    tables, lists = load_tables(config, {}), load_users(config, {})
    assert (tables.errors, lists.errors) == ((), ())
    table.write_text("bob@example.org old\nzoe@example.org nowhere\n")
    users.write_text("eve@example.org:secret\n")
    revision = replace(
        make_revision([]),
        refused_lines=load_tables(config, tables.files).kept,
        refused_users=load_users(config, lists.files).kept,
    )
    status = Status(UpstreamHealth(SharedMemory()))
    status.loaded(revision)
    running = read_config(json.loads(json.dumps(status.config())))
    assert running is not None
    observed = Observed(pods=(Pod(name="a", running=running),))
    found = routes_ready(observed, RouteFiles(frozenset({str(table)}), frozenset({str(users)})), FIELDS)
    assert found is not None
    assert found[2].startswith(
        "pod a: ConfigMap moves, key users, line 2: the upstream is not in spec.upstreams (old)"
    )
    notes = [event["note"] for event in RouteEvents().due(EDGE, BODY, observed, NOW)]
    assert len(notes) == 2
    assert "Secret users, key htpasswd, line 1: the hash is neither bcrypt nor" in notes[1]
    for name in ("zoe", "eve", "nowhere", "secret\n"):
        assert name not in f"{found}{notes}{status.config()}"


async def test_reconcile_writes_condition_and_one_event() -> None:
    cluster = MemoryCluster()
    route = {"table": {"configMapKeyRef": {"name": "moves", "key": "users"}}}
    mail = {"authMode": "Upstream", "routes": [route]}
    upstreams = [{"name": "old", "servers": [{"address": "old:143"}]}]
    cluster.put(body(replicas=1, mail=mail, upstreams=upstreams))
    reconciler = Reconciler(cluster, Platform(), now=lambda: NOW)
    await reconciler.reconcile(EDGE)
    cluster.roll_out("edge")
    digest = cluster.found_status("edge")["configHash"]
    line = f"{TABLE}:3: a name has at most one @"
    cluster.running["edge-0"] = RunningConfig(digest, route_tables=(line,))
    for _ in range(3):
        await reconciler.reconcile(EDGE)
    found = {one["type"]: one for one in cluster.found_status("edge")["conditions"]}
    assert (found["RoutesReady"]["status"], found["RoutesReady"]["reason"]) == ("False", "RouteTableRefused")
    assert "ConfigMap moves, key users, line 3: a name has at most one @" in found["RoutesReady"]["message"]
    assert "spec.mail.routes[0].table.configMapKeyRef" in found["RoutesReady"]["message"]
    assert found["Ready"]["status"] == "True"
    assert [event["reason"] for event in cluster.events].count("RouteTableRefused") == 1
    cluster.running["edge-0"] = RunningConfig(digest)
    await reconciler.reconcile(EDGE)
    found = {one["type"]: one for one in cluster.found_status("edge")["conditions"]}
    assert found["RoutesReady"]["status"] == "True"
