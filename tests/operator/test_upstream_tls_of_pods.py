# SPDX-License-Identifier: Apache-2.0
"""A real proxy as the pod: its report about a certificate becomes the condition and an event."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from mailproxy_config.model import Protocol, ProxySsl
from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.pod_report import read_config
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster
from support.proxy_process import wait_until
from support.servers.auth_service import AuthRule, auth_service
from support.servers.proxy import Proxy, manifest, start
from support.tls_authority import Authority
from support.upstream_tls import mail_server, server_context, session

EDGE: Final = Key("mail", "edge")
NAME: Final = "imap.example.com"
CONDITION: Final = "UpstreamTLSReady"


class PodCluster(MemoryCluster):
    """A cluster whose pod is a real proxy."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.digest = ""

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        del pod
        found = json.loads(self.proxy.get("/config")[1])
        return read_config({**found, "hash": self.digest})  # the operator renders other paths


def log_in(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.recv(1024)
        client.sendall(b"a LOGIN alice secret\r\n")
        return client.recv(1024)


def reported(proxy: Proxy) -> Any:
    return json.loads(proxy.get("/config")[1])["upstreams"].get("imap", {}).get("tls", {}).get("state")


async def test_condition_follows_the_certificate_of_the_mail_server(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    wrong, right = authority.issue(names=("other.example.com",)), authority.issue(names=(NAME,))
    context = server_context(wrong)
    step = session(Protocol.IMAP, ProxySsl.ENABLED)
    with mail_server(step, context) as upstream, auth_service({"alice": "secret"}) as auth:
        auth.rules["/"] = AuthRule(upstream.port)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        mail = {
            "authHttp": auth.url("/"),
            "proxySsl": "Enabled",
            "proxySslName": NAME,
            "proxySslTrustedCertificate": {"file": authority.file},
        }
        listen = [{"address": "127.0.0.1", "port": port}]
        servers = [{"name": "imap", "protocol": "imap", "listen": listen}]
        proxy = start(tmp_path / "proxy", manifest(servers, mail, workers=2))
        try:
            cluster = PodCluster(proxy)
            cluster.put(body(replicas=1, mail={**mail, "authHttp": "http://auth/"}))
            reconciler = Reconciler(cluster, Platform())
            await reconciler.reconcile(EDGE)
            cluster.roll_out("edge")
            cluster.digest = cluster.found_status("edge")["configHash"]
            await reconciler.reconcile(EDGE)
            assert cluster.condition("edge", CONDITION) == ("Unknown", "NoUpstreamTLSYet")

            assert log_in(port) == b"* BAD internal server error\r\n"
            wait_until(lambda: reported(proxy) == "failed", "the failure in the report")
            await reconciler.reconcile(EDGE)
            assert cluster.condition("edge", CONDITION) == ("False", "UpstreamNameMismatch")
            [event] = [one for one in cluster.events if one["reason"] == "UpstreamMisconfigured"]
            assert "DNS:other.example.com" in event["note"]
            assert "set proxySslName" in event["note"]
            assert "alice" not in proxy.get("/config")[1]
            assert proxy.value("mailproxy_upstream_config_errors_total", stage="tls") == 1

            context.load_cert_chain(right.files.certificate, right.files.key)
            assert log_in(port) == b"a OK logged in\r\n"
            wait_until(lambda: reported(proxy) == "succeeded", "the success in the report")
            await reconciler.reconcile(EDGE)
            assert cluster.condition("edge", CONDITION) == ("True", "UpstreamTLSEstablished")
        finally:
            proxy.stop()
