# SPDX-License-Identifier: Apache-2.0
"""A renewed certificate: the Secret changes, and no pod and no session ends (docs/tls.md)."""

from __future__ import annotations

from support.e2e.mail_world import MailWorld, pod_uids, tls_secret

KUBELET_SECONDS = 150.0
"""The kubelet updates mounted Secrets about once a minute."""


def test_new_certificate_is_used_for_new_handshakes_only(edge: MailWorld, first_certificate: str) -> None:
    cluster = edge.cluster
    implicit = edge.open("imap", 993, "tls")
    explicit = edge.open("smtp", 587, "starttls")
    pods = pod_uids(cluster)
    secret, fingerprint = tls_secret("mail-tls")
    assert fingerprint != first_certificate
    cluster.apply(secret)
    cluster.eventually(lambda: _all_are(edge, fingerprint), "the new certificate", KUBELET_SECONDS)
    implicit.command("NOOP")
    explicit.command("NOOP")
    assert pod_uids(cluster) == pods
    implicit.close()
    explicit.close()


def _all_are(edge: MailWorld, fingerprint: str) -> bool:
    """Whether several handshakes, which the Service distributes over the pods, get the certificate."""
    for _ in range(6):
        session = edge.open("pop3", 995, "tls", login=False)
        session.close()
        if session.fingerprint != fingerprint:
            return False
    explicit = edge.open("imap", 143, "starttls")
    explicit.close()  # an open session would keep an old pod draining in later tests
    return explicit.fingerprint == fingerprint
