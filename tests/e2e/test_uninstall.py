# SPDX-License-Identifier: Apache-2.0
"""Removal, as docs/upgrading.md describes it: proxies continue without an operator, and nothing is left."""

from __future__ import annotations

from support.e2e.live_cluster import CRD, MAIL, RELEASE, SYSTEM, LiveCluster
from support.e2e.mail_world import MailWorld

OWN = "app.kubernetes.io/managed-by=mailproxy-operator"
CHILDREN = (
    "deployments,daemonsets,services,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies,pods"
)
OF_RELEASE = (
    "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingadmissionpolicies,"
    "deployments,services,configmaps,secrets,serviceaccounts,roles,rolebindings,jobs,leases,pods"
)


def test_proxies_continue_after_the_release_is_uninstalled(edge: MailWorld) -> None:
    session = edge.open("imap", 993, "tls")
    edge.cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "3m")
    session.command("NOOP")
    session.close()
    edge.open("smtp", 465, "tls").close()
    assert edge.cluster.find("crd", CRD) is not None
    assert edge.cluster.find("mailp", "edge") is not None


def test_release_leaves_nothing_else(edge: MailWorld) -> None:
    edge.cluster.eventually(lambda: not _objects_of_release(edge.cluster), "the release's objects to be gone")


def _objects_of_release(cluster: LiveCluster) -> list[str]:
    listed = cluster.kubectl(
        "get", OF_RELEASE, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name"
    )
    leases = cluster.kubectl("-n", SYSTEM, "get", "leases", "-o", "name")
    return [one for one in (listed + leases).split() if one]


def test_deleted_resource_and_crd_leave_nothing(edge: MailWorld) -> None:
    cluster = edge.cluster
    cluster.kubectl("delete", "mailp", "--all", "--all-namespaces")
    cluster.kubectl("delete", "crd", CRD)
    cluster.eventually(
        lambda: not cluster.kubectl("-n", MAIL, "get", CHILDREN, "-l", OWN, "-o", "name").split(),
        "the proxies' objects to be gone",
    )
    assert cluster.find("crd", CRD) is None
