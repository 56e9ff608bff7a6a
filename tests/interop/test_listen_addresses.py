# SPDX-License-Identifier: Apache-2.0
"""Listeners other than a port of an IP address: UNIX sockets and host names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.servers.auth_service import AuthService, Backend
from support.servers.clients import Raw
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop


def test_sockets_of_the_file_system(
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
        }
        for protocol in ("imap", "smtp")
    ]
    service.backends["/unix-imap"] = Backend(dovecot.ports["imap"])
    service.backends["/unix-smtp"] = Backend(postfix.ports["smtp"])
    new_proxy(manifest(servers, {}))
    with Raw(folder / "imap") as raw:
        raw.say(b"a LOGIN carol christmas\r\n")
        assert raw.until(b"a ")[-1].startswith(b"a OK")
    with Raw(folder / "smtp") as raw:
        raw.line()
        raw.say(b"EHLO x\r\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\r\nMAIL FROM:<carol@example.org>\r\n")
        assert raw.until(b"235 ")[-1] == b"235 2.0.0 OK"
        assert raw.line().startswith(b"250 ")
    assert service.asked("/unix-imap")["client-ip"] == "unix:"
    assert service.asked("/unix-smtp")["client-host"] == "[UNAVAILABLE]"


def test_a_host_name(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: Callable[..., Proxy]
) -> None:
    """The proxy listens on each address of ``localhost`` on this machine."""
    port = ports.take()
    listen = [{"address": "localhost", "port": port}]
    servers = [
        {"name": "named", "protocol": "pop3", "listen": listen, "authHttp": service.url("/named-host")}
    ]
    service.backends["/named-host"] = Backend(dovecot.ports["pop3"])
    new_proxy(manifest(servers, {}))
    with Raw(port) as raw:
        raw.line()
        assert raw.ask(b"USER carol") == b"+OK"
        assert raw.ask(b"PASS christmas") == b"+OK Logged in."
