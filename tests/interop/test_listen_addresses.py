# SPDX-License-Identifier: Apache-2.0
"""Listeners other than a port of an IP address: UNIX sockets and host names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop


def test_clients_of_unix_sockets_log_in(
    dovecot: Dovecot,
    postfix: Postfix,
    service: AuthService,
    new_folder: Callable[[str], Path],
    new_proxy: Callable[..., Proxy],
) -> None:
    """A client of a UNIX socket has no address; it is served all the same."""
    folder = new_folder("unix")
    servers = [
        {
            "name": f"unix-{protocol}",
            "protocol": protocol,
            "listen": [{"address": f"unix:{folder / protocol}"}],
            "authHttp": service.url(f"/unix-{protocol}"),
            "xclient": False,
            "proxySmtpGuard": False,  # Postfix lists XCLIENT to the proxy's address
        }
        for protocol in ("imap", "smtp")
    ]
    service.rules["/unix-imap"] = AuthRule(dovecot.ports["imap"])
    service.rules["/unix-smtp"] = AuthRule(postfix.ports["smtp"])
    new_proxy(manifest(servers, {}))
    with RawClient(folder / "imap") as raw:
        raw.send(b"a LOGIN carol christmas\r\n")
        assert raw.read_until(b"a ")[-1].startswith(b"a OK")
    with RawClient(folder / "smtp") as raw:
        raw.read_line()
        raw.send(b"EHLO x\r\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\r\nMAIL FROM:<carol@example.org>\r\n")
        assert raw.read_until(b"235 ")[-1] == b"235 2.0.0 OK"
        assert raw.read_line().startswith(b"250 ")
    assert service.latest_request("/unix-imap")["client-ip"] == "unix:"
    assert service.latest_request("/unix-smtp")["client-host"] == "[UNAVAILABLE]"


def test_host_name_as_listen_address(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: Callable[..., Proxy]
) -> None:
    """The proxy listens on each address of ``localhost`` on this machine."""
    port = ports.take()
    listen = [{"address": "localhost", "port": port}]
    servers = [
        {"name": "named", "protocol": "pop3", "listen": listen, "authHttp": service.url("/named-host")}
    ]
    service.rules["/named-host"] = AuthRule(dovecot.ports["pop3"])
    new_proxy(manifest(servers, {}))
    with RawClient(port) as raw:
        raw.read_line()
        assert raw.exchange(b"USER carol") == b"+OK"
        assert raw.exchange(b"PASS christmas") == b"+OK Logged in."
