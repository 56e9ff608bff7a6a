# SPDX-License-Identifier: Apache-2.0
"""The chart's installation, and the first proxy of docs/first-proxy.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.e2e.live_cluster import CRD, MAIL, RELEASE, ROOT, SYSTEM, LiveCluster
from support.e2e.mail_world import MailWorld

FIRST_PROXY = ROOT / "deploy/examples/first-proxy.yaml"


def test_chart_installs_operator_and_crd(release: LiveCluster) -> None:
    status = release.get("deployment", RELEASE, SYSTEM)["status"]
    assert status["availableReplicas"] == status["replicas"] == 1
    conditions = {one["type"]: one["status"] for one in release.get("crd", CRD)["status"]["conditions"]}
    assert conditions["Established"] == "True"


def test_helm_test_passes(release: LiveCluster) -> None:
    assert "Succeeded" in release.helm("test", RELEASE, "--namespace", SYSTEM)


def test_second_installation_changes_nothing(release: LiveCluster) -> None:
    before = release.get("deployment", RELEASE, SYSTEM)["metadata"]["generation"]
    release.install()
    assert release.get("deployment", RELEASE, SYSTEM)["metadata"]["generation"] == before


@pytest.fixture
def first_proxy(mail: MailWorld) -> Iterator[MailWorld]:
    """The manifest as docs/first-proxy.md applies it, with the IMAP server of the tests."""
    manifest = FIRST_PROXY.read_text(encoding="utf-8").replace("imap.example.com:143", f"imap.{MAIL}.svc:143")
    mail.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)
    yield mail
    mail.cluster.kubectl("delete", "-f", "-", "--wait=true", stdin=manifest)


def test_first_proxy_becomes_ready_and_serves_a_login(first_proxy: MailWorld) -> None:
    first_proxy.cluster.wait_ready("first")
    session = first_proxy.open("imap", 143, "none", host="first")
    session.command("SELECT INBOX")
    session.close()
    assert any("alice" in one["user"] for one in first_proxy.received()["logins"])
