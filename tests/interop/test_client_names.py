# SPDX-License-Identifier: Apache-2.0
"""Client names from a real Unbound, in the request to the authentication service and in XCLIENT."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import proxy as proxies
from support.servers import unbound as unbounds
from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.postfix import Postfix
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import ServerPlan

pytestmark = pytest.mark.interop

ZONES: Final = ("example.net.", "113.0.203.in-addr.arpa.", "8.b.d.0.1.0.0.2.ip6.arpa.")
RECORDS: Final = (
    "9.113.0.203.in-addr.arpa. 60 IN PTR Far.Example.Net.",
    "far.example.net. 60 IN A 203.0.113.1",
    "far.example.net. 60 IN A 203.0.113.9",
    "10.113.0.203.in-addr.arpa. 60 IN PTR liar.example.net.",
    "liar.example.net. 60 IN A 203.0.113.99",
    f"{'9.0.0.0.' + '0.' * 20 + '8.b.d.0.1.0.0.2.ip6.arpa.'} 60 IN PTR six.example.net.",
    "six.example.net. 60 IN AAAA 2001:db8::9",
    "11.113.0.203.in-addr.arpa. 60 IN TXT nothing",
)


@dataclass
class NamesProxy:
    """A proxy that looks up the names of its clients."""

    proxy: Proxy
    ports: dict[str, int]


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """The port of a DNS server that receives queries and sends no response."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture(scope="module")
def names_proxy(
    needs: Needs,
    new_folder: Callable[[str], Path],
    ports: Ports,
    postfix: Postfix,
    service: AuthService,
    silent_port: int,
) -> Iterator[NamesProxy]:
    """The proxy, with one server block that uses Unbound, and one whose DNS server never responds."""
    unbound = unbounds.start(needs("unbound"), new_folder("unbound"), ports.take(), ZONES, RECORDS)
    plan = ServerPlan(service, ports)
    trust_proxy_header: dict[str, Any] = {
        "behind_proxy": True,
        "setRealIpFrom": ["127.0.0.0/8"],
        "xclient": True,
        "smtpAuth": ["none"],
    }
    plan.add("named", "smtp", resolver={"addresses": [unbound.address]}, **trust_proxy_header)
    silent_resolver = {"addresses": [f"127.0.0.1:{silent_port}"]}
    plan.add("unnamed", "smtp", resolver=silent_resolver, resolverTimeout="500ms", **trust_proxy_header)
    for name in plan.ports:
        service.rules[f"/{name}"] = AuthRule(postfix.ports["smtp"])
    proxy = proxies.start(new_folder("named"), manifest(plan.servers, {"serverName": "front.example.org"}))
    yield NamesProxy(proxy, plan.ports)
    proxy.stop()
    unbound.running.stop()


def send_envelope(port: int, address: str) -> None:
    """Start a mail transaction as a client with this address."""
    family = "TCP6" if ":" in address else "TCP4"
    destination = "::1" if ":" in address else "127.0.0.1"
    with RawClient(port) as raw:
        raw.send(f"PROXY {family} {address} {destination} 4711 25\r\n".encode())
        assert raw.read_line().startswith(b"220 front.example.org")
        raw.send(b"EHLO whoever.example\r\n")
        raw.read_until(b"250 ")
        assert raw.exchange(b"MAIL FROM:<>").startswith(b"250 ")
        assert raw.exchange(b"RCPT TO:<carol@example.org>").startswith(b"250 ")
        assert raw.exchange(b"QUIT").startswith(b"221 ")


@pytest.mark.parametrize(
    ("address", "name", "client"),
    [
        ("203.0.113.9", "far.example.net", "far.example.net[203.0.113.9]"),
        ("2001:db8::9", "six.example.net", "six.example.net[2001:db8::9]"),
        ("203.0.113.10", "[UNAVAILABLE]", "unknown[203.0.113.10]"),  # its name has another address
        ("203.0.113.11", "[UNAVAILABLE]", "unknown[203.0.113.11]"),  # there is a record, but no PTR record
        ("11.22.33.44", "[TEMPUNAVAIL]", "unknown[11.22.33.44]"),  # REFUSED
    ],
)
def test_client_name_reaches_auth_service_and_postfix(
    names_proxy: NamesProxy, postfix: Postfix, service: AuthService, address: str, name: str, client: str
) -> None:
    send_envelope(names_proxy.ports["named"], address)
    auth_request = service.latest_request("/named")
    assert (auth_request["client-ip"], auth_request["client-host"]) == (address, name)
    eventually(
        lambda: postfix.log_lines("postfix/smtpd", f"client={client}"),
        f"client={client} in the log of Postfix",
    )


def test_client_name_is_tempunavail_after_resolver_timeout(
    names_proxy: NamesProxy, postfix: Postfix, service: AuthService
) -> None:
    before = names_proxy.proxy.value("mailproxy_dns_timeouts_total", purpose="ptr")
    send_envelope(names_proxy.ports["unnamed"], "203.0.113.9")
    assert service.latest_request("/unnamed")["client-host"] == "[TEMPUNAVAIL]"
    assert names_proxy.proxy.value("mailproxy_dns_timeouts_total", purpose="ptr") == before + 1
