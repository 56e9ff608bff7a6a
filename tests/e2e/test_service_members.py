# SPDX-License-Identifier: Apache-2.0
"""Services as upstreams: a StatefulSet of mail servers is rolled, and no user moves (docs/routes.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.e2e.live_cluster import MAIL, LiveCluster
from support.e2e.mail_world import (
    FailedRequestError,
    MailWorld,
    pod_spec,
    pod_uids,
    python_container,
    service,
)
from support.helm import Object

NAME = "routed"
SERVERS = ("dovecot-0", "dovecot-1")
SELECTOR = {"app": "dovecot-set"}


def stateful_set() -> Object:
    """Return a StatefulSet of the mail servers of the tests."""
    spec = pod_spec(python_container("servers", "mail_servers.py"))
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "dovecot", "namespace": MAIL},
        "spec": {
            "serviceName": "dovecot-set",
            "replicas": len(SERVERS),
            "selector": {"matchLabels": SELECTOR},
            "template": {"metadata": {"labels": SELECTOR}, "spec": spec},
        },
    }


def mail_proxy() -> Object:
    """Return a MailProxy whose only upstream is the Service of the StatefulSet."""
    return {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "metadata": {"name": NAME, "namespace": MAIL},
        "spec": {
            "replicas": 1,
            "mail": {"authMode": "Upstream", "routes": [{"domains": ["*"], "upstream": "dovecot"}]},
            "upstreams": [{"name": "dovecot", "service": {"name": "dovecot-set"}, "hash": "User"}],
            "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
            "service": {"type": "ClusterIP"},
        },
    }


@pytest.fixture
def routed(edge: MailWorld) -> Iterator[MailWorld]:
    """Mail servers in a StatefulSet, and a proxy in front of them."""
    headless = service("dovecot-set", SELECTOR, 143, 1143)
    headless["spec"]["clusterIP"] = "None"
    edge.cluster.apply(headless, stateful_set(), mail_proxy())
    edge.cluster.kubectl("-n", MAIL, "rollout", "status", "statefulset/dovecot", "--timeout=170s")
    edge.cluster.wait_ready(NAME)
    yield edge
    edge.cluster.kubectl("-n", MAIL, "delete", "mailp", NAME)
    edge.cluster.kubectl("-n", MAIL, "delete", "statefulset/dovecot", "service/dovecot-set")


def ready_members(cluster: LiveCluster) -> tuple[str, list[Object]]:
    """Return status of the condition, and the numbers of members."""
    status = cluster.get("mailp", NAME)["status"]
    return cluster.condition(NAME, "GroupsReady")[0], status.get("upstreams", [])


def server_of_login(world: MailWorld) -> str:
    """Log in, and return the mail server that got the login."""
    before = {name: len(world.cluster.request_pod(name, "")["logins"]) for name in SERVERS}
    world.open("imap", 143, "none", host=NAME).close()
    [found] = [name for name in SERVERS if len(world.cluster.request_pod(name, "")["logins"]) > before[name]]
    return found


def test_rolled_stateful_set_moves_no_user_and_restarts_no_proxy(routed: MailWorld) -> None:
    cluster = routed.cluster
    everybody = ("True", [{"name": "dovecot", "ready": 2, "total": 2}])
    cluster.eventually(lambda: ready_members(cluster) == everybody, "both members")
    pods, owner = pod_uids(cluster, NAME), server_of_login(routed)
    before = {name: cluster.get("pod", name)["status"]["podIP"] for name in SERVERS}
    cluster.kubectl("-n", MAIL, "rollout", "restart", "statefulset/dovecot")
    cluster.kubectl("-n", MAIL, "rollout", "status", "statefulset/dovecot", "--timeout=170s")
    cluster.eventually(lambda: ready_members(cluster) == everybody, "both members again")
    assert {name: cluster.get("pod", name)["status"]["podIP"] for name in SERVERS} != before

    def logs_in_at_owner() -> bool:
        try:
            found = server_of_login(routed)
        except FailedRequestError:  # a temporary failure, until the pods have the new address
            return False
        assert found == owner
        return True

    assert cluster.eventually(logs_in_at_owner, "a login at the same mail server")
    assert pod_uids(cluster, NAME) == pods
