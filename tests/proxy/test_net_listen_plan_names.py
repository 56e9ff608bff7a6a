# SPDX-License-Identifier: Apache-2.0
"""Host names in ``listen`` lines."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from mailproxy.net.listen_plan import resolve_names
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ListenConfig, Protocol, ProxyConfig
from support.configs import server


def config(*addresses: str) -> ProxyConfig:
    listen = tuple(ListenConfig(address=address, port=143) for address in addresses)
    return ProxyConfig(servers=(server(Protocol.IMAP, listen=listen),))


def test_the_system_s_resolver_is_asked() -> None:
    found = resolve_names(config("*", "127.0.0.1", "[::1]", "unix:/run/a", "localhost"))
    assert set(found) == {"localhost"}
    assert set(found["localhost"]) <= {"127.0.0.1", "::1"}
    assert found["localhost"]


def test_every_address_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def lookup(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        asked.append(name)
        return [(0, 0, 0, "", (address, 0)) for address in ("192.0.2.1", "fe80::1%eth0", "192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert resolve_names(config("mail.example", "mail.example")) == {"mail.example": ("192.0.2.1", "fe80::1")}
    assert asked == ["mail.example"]


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "?"), UnicodeError("label too long")])
def test_every_line_with_an_unknown_name_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def lookup(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(ConfigError) as refused:
        resolve_names(config("a.example", "*", "a.example"))
    assert refused.value.problems == (
        Problem("servers[0].listen[0].address", "host not found: a.example"),
        Problem("servers[0].listen[2].address", "host not found: a.example"),
    )


def test_who_is_trusted_by_name_is_looked_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = ("10.0.0.0/8", "2001:db8::1", "unix:", "lb.example")
    trusting = ProxyConfig(servers=(server(Protocol.IMAP, set_real_ip_from=entries),))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.9", 0))])
    assert resolve_names(trusting) == {"lb.example": ("192.0.2.9",)}
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(ConfigError) as refused:
        resolve_names(trusting)
    assert refused.value.problems == (
        Problem("servers[0].set_real_ip_from[3]", "host not found: lb.example"),
    )
