# SPDX-License-Identifier: Apache-2.0
"""The sidecar: the webhook adds the proxy to a pod of an application (docs/sidecar.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from support.e2e.live_cluster import MAIL, ROOT, LiveCluster
from support.e2e.mail_world import MailWorld, pod, python_container, tls_secret
from support.helm import Object

EXAMPLE = ROOT / "deploy/examples/sidecar.yaml"
INJECT = "mailproxy.dev/inject"


def example() -> dict[str, Object]:
    """Return the objects of the example, by kind and name."""
    documents = [one for one in yaml.safe_load_all(EXAMPLE.read_text(encoding="utf-8")) if one]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


def application(name: str) -> Object:
    """Return a pod with the mail servers of the tests and the authentication service of the example."""
    auth = python_container("auth", "auth.py", is_probed=False)
    auth["command"] = ["python", "/etc/auth/auth.py"]
    auth["volumeMounts"] = [{"name": "auth", "mountPath": "/etc/auth", "readOnly": True}]
    servers = python_container("servers", "mail_servers.py")
    made = pod(name, servers, auth, labels={"app": "dovecot", INJECT: "dovecot"})
    made["spec"]["volumes"].append({"name": "auth", "configMap": {"name": "dovecot-auth"}})
    made["spec"]["terminationGracePeriodSeconds"] = 60
    return made


@pytest.fixture(scope="module")
def webhook(edge: MailWorld) -> Iterator[MailWorld]:
    """The release with the webhook, and the MailProxy of the example for the servers of the tests."""
    edge.cluster.install(**{"webhook.enabled": True})
    found = example()
    proxy, settings = found["MailProxy/dovecot"], found["ConfigMap/dovecot-auth"]
    for one in (proxy, settings):
        one["metadata"]["namespace"] = MAIL
    # The servers of the tests instead of Dovecot: another port, and no PROXY header.
    settings["data"]["auth.py"] = settings["data"]["auth.py"].replace("31143", "1143")
    proxy["spec"]["mail"]["proxyProtocol"] = "Disabled"
    proxy["spec"]["mail"]["sslCertificate"] = [{"secretName": "dovecot-tls"}]
    edge.cluster.apply(tls_secret("dovecot-tls")[0], proxy, settings)
    edge.cluster.eventually(lambda: edge.cluster.find("configmap", "dovecot-config"), "the configuration")
    yield edge
    edge.cluster.kubectl("-n", MAIL, "delete", "mailp", "dovecot")
    edge.cluster.kubectl("-n", MAIL, "delete", "configmap", "dovecot-auth")
    edge.cluster.install(**{"webhook.enabled": False})


@pytest.fixture
def injected(webhook: MailWorld) -> Iterator[MailWorld]:
    """A pod that the webhook has changed."""
    webhook.cluster.apply(application("dovecot-0"))
    yield webhook
    webhook.cluster.kubectl("-n", MAIL, "delete", "pod", "dovecot-0", "--wait=true")


def test_pod_gets_the_sidecar_and_serves_logins(injected: MailWorld) -> None:
    cluster = injected.cluster
    cluster.kubectl("-n", MAIL, "wait", "--for=condition=Ready", "pod/dovecot-0", "--timeout=120s")
    assert [one["name"] for one in cluster.get("pod", "dovecot-0")["spec"]["initContainers"]] == ["mailproxy"]
    for port, tls in ((143, "starttls"), (993, "tls")):
        session = injected.open("imap", port, tls, host="dovecot")
        session.command("NOOP")
        session.close()
    cluster.wait_ready("dovecot")
    assert len(_logins(cluster)) == 2


def _logins(cluster: LiveCluster) -> list[object]:
    return list(cluster.request_pod("dovecot-0", "")["logins"])


def test_reload_of_the_sidecar_keeps_sessions(injected: MailWorld) -> None:
    cluster = injected.cluster
    cluster.kubectl("-n", MAIL, "wait", "--for=condition=Ready", "pod/dovecot-0", "--timeout=120s")
    session = injected.open("imap", 993, "tls", host="dovecot")
    patch = '{"spec":{"mail":{"serverName":"renamed.example.com"}}}'
    cluster.kubectl("-n", MAIL, "patch", "mailp", "dovecot", "--type=merge", "-p", patch)
    cluster.eventually(
        lambda: cluster.condition("dovecot", "ConfigSynced")[0] == "True", "the sidecar to reload"
    )
    session.command("NOOP")
    session.close()


def test_pod_without_a_mailproxy_is_created_with_a_warning(webhook: MailWorld) -> None:
    made = application("dovecot-1")
    made["metadata"]["labels"][INJECT] = "absent"
    done = webhook.cluster.run("apply", "-f", "-", stdin=yaml.safe_dump(made))
    assert done.returncode == 0
    assert "absent" in done.stderr
    assert "initContainers" not in webhook.cluster.get("pod", "dovecot-1")["spec"]
    webhook.cluster.kubectl("-n", MAIL, "delete", "pod", "dovecot-1", "--wait=true")
