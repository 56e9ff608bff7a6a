# SPDX-License-Identifier: Apache-2.0
"""A change that replaces the pods, under load: what docs/upgrading.md and docs/scaling.md promise."""

from __future__ import annotations

import json
import time

from support.e2e.live_cluster import MAIL
from support.e2e.mail_world import USER, MailWorld, pod_uids, proxy_pods, set_spec, settle

LOOP = [
    {"protocol": protocol, "host": "edge.mail.svc", "port": port, "tls": tls, **USER}
    for protocol, port, tls in (("imap", 993, "tls"), ("pop3", 110, "starttls"), ("smtp", 465, "tls"))
]


def test_rolling_update_loses_no_login_and_no_message(edge: MailWorld) -> None:
    cluster = edge.cluster
    old = pod_uids(cluster)
    in_data = [edge.open("smtp", 465, "tls") for _ in range(4)]
    for number, session in enumerate(in_data):
        session.command("MAIL FROM:<alice@example.com>")
        session.command("RCPT TO:<bob@example.com>")
        session.command("DATA")
        session.send(f"Subject: rollout {number}\r\n\r\nfirst half of {number}\r\n")
    idle = [edge.open("imap", 993, "tls") for _ in range(4)]
    before_login = [edge.open("imap", 993, "tls", login=False) for _ in range(4)]
    loop = edge.act("loop", requests=LOOP)["id"]
    try:
        set_spec(edge, pod={"annotations": {"e2e/rollout": str(time.time_ns())}})
        cluster.eventually(lambda: _new_pods_ready(edge, old), "two new pods")
        cluster.eventually(lambda: not _accepting(edge, old), "all old pods to be terminating")
        for session in before_login:  # they have not logged in: the closing reply of the protocol
            assert session.read_to_end(30).startswith("* BYE")
        for session in idle:
            session.command("NOOP")
        for number, session in enumerate(in_data):
            session.send(f"second half of {number}\r\n")
            assert "stored" in session.command(".")
    finally:
        result = edge.act("stop", id=loop)
    assert result["failures"] == []
    assert result["logins"] > 20
    contents = [one["content"] for one in edge.received()["messages"]]
    for number in range(4):
        [message] = [one for one in contents if one.startswith(f"Subject: rollout {number}\r\n")]
        assert message.endswith(f"first half of {number}\r\nsecond half of {number}\r\n")
    for session in (*in_data, *idle):
        session.close()
    # An old pod ends with its last session, long before the end of the drain.
    cluster.eventually(lambda: not old & pod_uids(cluster), "the old pods to be gone", 60)
    settle(edge)


def _new_pods_ready(edge: MailWorld, old: set[str]) -> bool:
    new = [one for one in proxy_pods(edge.cluster) if one["metadata"]["uid"] not in old]
    ready = [
        one
        for one in new
        for condition in one["status"].get("conditions") or []
        if (condition["type"], condition["status"]) == ("Ready", "True")
    ]
    return len(ready) == 2


def _accepting(edge: MailWorld, old: set[str]) -> bool:
    """Whether an old pod is not terminating yet."""
    return any(
        one["metadata"]["uid"] in old and "deletionTimestamp" not in one["metadata"]
        for one in proxy_pods(edge.cluster)
    )


def test_drain_timeout_ends_the_remaining_sessions(edge: MailWorld) -> None:
    cluster = edge.cluster
    set_spec(edge, drain={"timeout": "5s"})
    settle(edge)
    old = pod_uids(cluster)
    sessions = [edge.open("imap", 993, "tls") for _ in range(4)]
    set_spec(edge, pod={"annotations": {"e2e/rollout": str(time.time_ns())}})
    cluster.eventually(lambda: not old & pod_uids(cluster), "the old pods to be gone")
    for session in sessions:
        session.read_to_end(5)
    edge.open("imap", 993, "tls").close()


def test_scaling_down_and_up_loses_no_login(edge: MailWorld) -> None:
    cluster = edge.cluster
    loop = edge.act("loop", requests=LOOP)["id"]
    try:
        for replicas in (1, 2):
            cluster.kubectl("-n", MAIL, "scale", "mailp/edge", f"--replicas={replicas}")
            cluster.eventually(
                lambda wanted=replicas: (
                    cluster.get("deployment", "edge")["status"].get("readyReplicas") == wanted
                    and cluster.get("mailp", "edge")["status"].get("readyReplicas") == wanted
                ),
                f"{replicas} ready pods",
            )
    finally:
        result = edge.act("stop", id=loop)
    assert json.dumps(result["failures"]) == "[]"
    assert result["logins"] > 5
