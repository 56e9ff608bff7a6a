# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy of a MailProxy, where the network plug-in enforces policies."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from support.e2e.live_cluster import MAIL, skip_tests
from support.e2e.mail_world import SERVERS, MailWorld, proxy_pods, set_spec, settle

ADMIN_PORT = 9113
EGRESS = [{"ports": [{"port": port, "protocol": "TCP"} for port in (1143, 1110, 1025)]}]
DENY_SERVERS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "e2e-probe", "namespace": MAIL},
    "spec": {"podSelector": {"matchLabels": {"app": SERVERS}}, "policyTypes": ["Ingress"], "ingress": []},
}


@pytest.fixture(scope="module")
def enforced(edge: MailWorld) -> MailWorld:
    """Skip the tests unless a policy that denies everything has an effect."""
    settle(edge)
    assert edge.connects("imap.mail.svc", 143)
    edge.cluster.apply(DENY_SERVERS)
    try:
        end = time.monotonic() + 20
        while edge.connects("imap.mail.svc", 143, 2):
            if time.monotonic() > end:
                skip_tests("the network plug-in of this cluster does not enforce NetworkPolicies")
    finally:
        edge.cluster.kubectl("-n", MAIL, "delete", "networkpolicy", "e2e-probe")
    edge.cluster.eventually(lambda: edge.connects("imap.mail.svc", 143), "the probe's policy to be gone")
    return edge


@pytest.fixture
def policy(enforced: MailWorld) -> Iterator[MailWorld]:
    """The proxy with its policy, which is removed after the test."""
    set_spec(enforced, networkPolicy={"enabled": True, "egress": EGRESS})
    enforced.cluster.eventually(lambda: enforced.cluster.find("networkpolicy", "edge"), "the policy")
    yield enforced
    set_spec(enforced, networkPolicy=None)
    enforced.cluster.eventually(lambda: enforced.cluster.find("networkpolicy", "edge") is None, "its removal")


def test_policy_closes_the_admin_port_to_clients_only(policy: MailWorld) -> None:
    addresses = [one["status"]["podIP"] for one in proxy_pods(policy.cluster)]
    policy.cluster.eventually(
        lambda: not any(policy.connects(one, ADMIN_PORT) for one in addresses), "the admin port to be closed"
    )
    for protocol, port, tls in (("imap", 143, "starttls"), ("pop3", 995, "tls"), ("smtp", 465, "tls")):
        policy.open(protocol, port, tls).close()
    # The operator reads the running configuration from the admin port of each pod.
    set_spec(policy, mail={"imapCapabilities": ["IMAP4rev1", "X-POLICY"]})
    policy.cluster.eventually(
        lambda: policy.cluster.condition("edge", "ConfigSynced")[0] == "True",
        "the operator to reach the pods",
    )


def test_policy_limits_connections_of_the_proxy(policy: MailWorld) -> None:
    set_spec(policy, networkPolicy={"egress": []})
    policy.cluster.eventually(
        lambda: not _logs_in(policy), "mail servers that are not listed to be out of reach"
    )
    set_spec(policy, networkPolicy={"egress": EGRESS})
    policy.cluster.eventually(lambda: _logs_in(policy), "the listed mail servers to be reached")


def _logs_in(policy: MailWorld) -> bool:
    try:
        policy.open("imap", 993, "tls").close()
    except AssertionError:
        return False
    return True
