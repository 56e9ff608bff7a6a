# SPDX-License-Identifier: Apache-2.0
"""A changed directive: pods reload, new sessions get the new value, and open sessions stay."""

from __future__ import annotations

from support.e2e.mail_world import MailWorld, pod_uids, set_spec


def test_reload_keeps_open_sessions_and_pods(edge: MailWorld) -> None:
    cluster = edge.cluster
    logged_in = edge.open("imap", 993, "tls")
    before_login = edge.open("imap", 993, "tls", login=False)
    pods = pod_uids(cluster)
    old_hash = cluster.get("mailp", "edge")["status"]["configHash"]
    set_spec(edge, mail={"imapCapabilities": ["IMAP4rev1", "X-E2E-RELOADED"]})
    cluster.eventually(
        lambda: (
            cluster.get("mailp", "edge")["status"].get("configHash") != old_hash
            and cluster.condition("edge", "ConfigSynced")[0] == "True"
        ),
        "all pods to run the new configuration",
    )
    assert cluster.get("mailp", "edge")["status"]["podsSynced"] == 2
    for _ in range(4):  # each pod of the Service is likely to be met
        new = edge.open("imap", 993, "tls", login=False)
        assert "X-E2E-RELOADED" in new.command("CAPABILITY")
        new.close()
    assert "X-E2E-RELOADED" not in before_login.command("CAPABILITY")
    logged_in.command("NOOP")
    assert pod_uids(cluster) == pods
    logged_in.close()
    before_login.close()


def test_rejected_configuration_keeps_the_old_one(edge: MailWorld) -> None:
    cluster = edge.cluster
    done = cluster.run(
        "-n", "mail", "patch", "mailp", "edge", "--type=merge", "-p", '{"spec":{"mail":{"timeout":"soon"}}}'
    )
    assert done.returncode != 0
    assert "must be a time" in done.stderr
    edge.open("imap", 993, "tls").close()
