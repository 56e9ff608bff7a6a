# SPDX-License-Identifier: Apache-2.0
"""Sysctls: a safe one is set in the pod; one that the node refuses is reported and left out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from support.e2e.live_cluster import MAIL
from support.e2e.mail_world import MailWorld, pod_uids, proxy_pods, set_spec, settle

REFUSED = "net.core.somaxconn"


@pytest.fixture
def usual_sysctls(edge: MailWorld) -> Iterator[MailWorld]:
    """The proxy, which has its own sysctls again after the test."""
    yield edge
    set_spec(edge, sysctls={"extra": None, "unsafe": None})
    settle(edge)


def test_unsafe_sysctl_is_rejected_unless_allowed(edge: MailWorld) -> None:
    patch = json.dumps({"spec": {"sysctls": {"extra": [{"name": REFUSED, "value": "8192"}]}}})
    done = edge.cluster.run("-n", MAIL, "patch", "mailp", "edge", "--type=merge", "-p", patch)
    assert done.returncode != 0
    assert "unsafe: Allow" in done.stderr


def test_safe_sysctl_is_set_in_new_pods(usual_sysctls: MailWorld) -> None:
    cluster = usual_sysctls.cluster
    pods = pod_uids(cluster)
    set_spec(usual_sysctls, sysctls={"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "15"}]})
    cluster.eventually(lambda: not pods & pod_uids(cluster), "the old pods to be replaced")
    cluster.wait_ready("edge")
    for one in proxy_pods(cluster):
        listed = one["spec"]["securityContext"]["sysctls"]
        assert {"name": "net.ipv4.tcp_fin_timeout", "value": "15"} in listed
    usual_sysctls.open("imap", 993, "tls").close()


def test_sysctl_that_the_node_refuses_is_reported_and_removed(usual_sysctls: MailWorld) -> None:
    cluster = usual_sysctls.cluster
    settle(usual_sysctls)
    pods = pod_uids(cluster)
    set_spec(usual_sysctls, sysctls={"extra": [{"name": REFUSED, "value": "8192"}], "unsafe": "Allow"})
    cluster.eventually(
        lambda: cluster.condition("edge", "Stalled")[:2] == ("True", "SysctlForbidden"),
        "the condition Stalled",
    )
    assert REFUSED in cluster.condition("edge", "Stalled")[2]
    cluster.eventually(lambda: _events(usual_sysctls), "an event about the sysctl")
    cluster.eventually(lambda: not _refused_pods(usual_sysctls), "the refused pods to be deleted")
    template = cluster.get("deployment", "edge")["spec"]["template"]["spec"]
    assert REFUSED not in {one["name"] for one in template["securityContext"]["sysctls"]}
    entry = _entry(usual_sysctls)
    assert entry is not None
    assert (entry["applied"], entry["reason"]) == (False, "SysctlForbidden")
    assert pods <= pod_uids(cluster)  # running pods stay
    usual_sysctls.open("imap", 993, "tls").close()


def _entry(edge: MailWorld) -> dict[str, object] | None:
    listed = edge.cluster.get("mailp", "edge").get("status", {}).get("sysctls") or []
    return next((one for one in listed if one["name"] == REFUSED), None)


def _events(edge: MailWorld) -> list[object]:
    listed = edge.cluster.list("events.events.k8s.io", namespace=MAIL)
    return [
        one
        for one in listed
        if one.get("reason") == "SysctlForbidden" and one["regarding"]["kind"] == "MailProxy"
    ]


def _refused_pods(edge: MailWorld) -> list[object]:
    return [one for one in proxy_pods(edge.cluster) if one["status"].get("reason") == "SysctlForbidden"]
