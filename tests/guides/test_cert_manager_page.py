# SPDX-License-Identifier: Apache-2.0
"""docs/cert-manager.md: its objects fit together, and a renewal keeps the sessions of its proxy."""

from __future__ import annotations

import imaplib
import shutil
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import yaml

from support.guides.blocks import Page
from support.guides.clients import ImapTls, connect
from support.guides.front import GuideFronts
from support.servers.auth_service import AuthRule
from support.servers.programs import eventually
from support.servers.proxy import ROOT
from support.servers.tiny_mail import tiny_mail
from support.tls_authority import Authority

PAGE: Final = Page("cert-manager.md")


def test_the_proxy_uses_the_secret_of_the_certificate() -> None:
    issuer, certificate, proxy = (PAGE.object(name) for name in ("issuer", "certificate", "proxy"))
    spec = certificate["spec"]
    assert spec["issuerRef"] == {"kind": issuer["kind"], "name": issuer["metadata"]["name"]}
    assert proxy["spec"]["mail"]["sslCertificate"] == [{"secretName": spec["secretName"]}]
    assert proxy["metadata"]["namespace"] == certificate["metadata"]["namespace"]
    assert proxy["spec"]["mail"]["serverName"] in spec["dnsNames"]


def test_the_example_has_the_same_certificate() -> None:
    text = (ROOT / "deploy/examples/cert-manager.yaml").read_text()
    example, _ = yaml.safe_load_all(text)
    spec = PAGE.object("certificate")["spec"]
    assert {**example["spec"], "dnsNames": spec["dnsNames"]} == spec


def _serial(port: int, context: ssl.SSLContext) -> str:
    with context.wrap_socket(connect(port)) as sock:
        found = sock.getpeercert()
        assert found
        return str(found["serialNumber"])


def test_a_renewal_is_used_at_once_and_keeps_sessions(open_folder: Path) -> None:
    with ExitStack() as stack:
        fronts = GuideFronts(open_folder, stack, {"alice": "wonderland"})
        mail = stack.enter_context(tiny_mail("imap"))
        front = fronts.start(PAGE.object("proxy"), {"imap": mail.port})
        fronts.service.rules["/imap"] = AuthRule(mail.port)
        context = fronts.tls.client()
        client: imaplib.IMAP4 = ImapTls(front.ports[993], context)
        stack.callback(client.shutdown)
        assert client.login("alice", "wonderland")[0] == "OK"
        before = _serial(front.ports[993], context)

        renewed = Authority(fronts.new_folder())
        both = fronts.tls.client()
        both.load_verify_locations(renewed.file)
        files = renewed.issue("CN=localhost").files
        shutil.copy(str(files.key), str(fronts.tls.proxy.key))
        shutil.copy(files.certificate, fronts.tls.proxy.certificate)
        eventually(lambda: _serial(front.ports[993], both) != before, "the renewed certificate")
        assert client.noop()[0] == "OK"
        front.proxy.event("configuration_loaded")
