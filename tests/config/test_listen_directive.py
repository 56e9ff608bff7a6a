# SPDX-License-Identifier: Apache-2.0
"""``listen`` and its parameters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from mailproxy_config.errors import Problem, Problems
from mailproxy_config.listen_directive import LISTEN, LISTEN_PARAMETERS, parse_nginx_listen
from mailproxy_config.model import KeepAlive, ListenConfig
from mailproxy_config.value_types import ErrorPath
from support.config_bodies import LISTENERS


def problems_of(*listen: object) -> list[Problem]:
    problems = Problems()
    LISTEN.schema.check(list(listen), "listen", problems)
    if not problems:
        LISTEN.read(list(listen), ErrorPath("listen", problems))
    return problems.found


def read(listener: object) -> object:
    found = LISTEN.read([listener], ErrorPath("listen", Problems()))
    assert isinstance(found, tuple)
    return found[0]


def test_every_field_of_listen_config_has_a_row() -> None:
    assert [row.model for row in LISTEN_PARAMETERS] == [field.name for field in fields(ListenConfig)]


@pytest.mark.parametrize(
    ("raw", "listener"),
    [
        ({"port": 143}, ListenConfig(port=143)),
        ({"address": "unix:/x"}, ListenConfig(address="unix:/x")),
        (
            {"port": 1, "ssl": True, "proxyProtocol": True},
            ListenConfig(port=1, ssl=True, proxy_protocol=True),
        ),
        ({"port": 1, "backlog": 9}, ListenConfig(port=1, backlog=9, bind=True)),
        ({"port": 1, "rcvbuf": "4k", "sndbuf": 9}, ListenConfig(port=1, rcvbuf=4096, sndbuf=9, bind=True)),  # type: ignore[arg-type]
        (
            {"address": "[::]", "port": 1, "ipv6only": False},
            ListenConfig(address="[::]", port=1, ipv6only=False, bind=True),
        ),
        (
            {"port": 1, "soKeepalive": {"idle": "30m", "count": 10}},
            ListenConfig(port=1, bind=True, so_keepalive=KeepAlive(idle=1800, count=10)),
        ),
        (
            {"port": 1, "soKeepalive": {"interval": 75}, "multipath": True},
            ListenConfig(port=1, bind=True, multipath=True, so_keepalive=KeepAlive(interval=75)),
        ),
        (
            {"port": 1, "soKeepalive": {"enabled": False}},
            ListenConfig(port=1, bind=True, so_keepalive=KeepAlive(enabled=False)),
        ),
    ],
)
def test_listener_is_read(raw: dict[str, Any], listener: ListenConfig) -> None:
    assert problems_of(raw) == []
    assert read(raw) == listener


@pytest.mark.parametrize(
    ("raw", "path", "reason"),
    [
        ({"port": 0}, "port", "0 is out of range 1 to 65535"),
        ({}, "", "a listener has either a port or a unix: address"),
        ({"address": "unix:/x", "port": 1}, "", "a listener has either a port or a unix: address"),
        ({"address": "unix:x"}, "address", "unix: takes an absolute path of at most 107 bytes"),
        ({"address": "unix:/" + "é" * 60}, "address", "unix: takes an absolute path of at most 107 bytes"),
        (
            {"address": "::1", "port": 1},
            "address",
            "an IPv6 address must be in brackets, and the port in the field port",
        ),
        ({"address": "[::1::]", "port": 1}, "address", "invalid IPv6 address '[::1::]'"),
        ({"port": 1, "ipv6only": True}, "ipv6only", "ipv6only needs an IPv6 address in brackets"),
        ({"port": 1, "backlog": 0}, "backlog", "0 is out of range 1 to 2147483647"),
        ({"port": 1, "rcvbuf": "9999999m"}, "rcvbuf", "9999999m is more than 2147483647 bytes"),
        ({"port": 1, "reuseport": True}, "reuseport", "unknown field"),
        (
            {"port": 1, "soKeepalive": {}},
            "soKeepalive",
            "soKeepalive: set enabled, or at least one of idle, interval and count",
        ),
        (
            {"port": 1, "soKeepalive": {"enabled": False, "count": 1}},
            "soKeepalive",
            "soKeepalive: idle, interval and count are not allowed with enabled: false",
        ),
        (
            {"port": 1, "soKeepalive": {"idle": "10h"}},
            "soKeepalive.idle",
            "must be between 1s and 32767s, the range of the socket option",
        ),
        (
            {"port": 1, "soKeepalive": {"idle": "9999999999999h"}},
            "soKeepalive.idle",
            "must be between 1s and 32767s, the range of the socket option",
        ),
        ({"port": 1, "soKeepalive": {"count": 128}}, "soKeepalive.count", "128 is out of range 1 to 127"),
    ],
)
def test_invalid_listener_is_rejected(raw: dict[str, Any], path: str, reason: str) -> None:
    assert problems_of(raw) == [Problem(f"listen[0].{path}".rstrip("."), reason)]


@pytest.mark.parametrize("raw", LISTENERS)
def test_listener_is_written_and_read_unchanged(raw: dict[str, Any]) -> None:
    listener = read({**raw, "port": 143})
    assert [read(written) for written in LISTEN.write((listener,))] == [listener]


@pytest.mark.parametrize(
    ("line", "listeners"),
    [
        ("143", [{"port": 143}]),
        ("*:993 ssl proxy_protocol bind", [{"port": 993, "ssl": True, "proxyProtocol": True, "bind": True}]),
        ("[::]:143 ipv6only=off", [{"address": "[::]", "port": 143, "ipv6only": False}]),
        ("143-144 backlog=5", [{"port": 143, "backlog": 5}, {"port": 144, "backlog": 5}]),
        ("unix:/x sndbuf=4k rcvbuf=1m", [{"address": "unix:/x", "sndbuf": "4k", "rcvbuf": "1m"}]),
        ("1 so_keepalive=on", [{"port": 1, "soKeepalive": {"enabled": True}}]),
        ("1 so_keepalive=off multipath", [{"port": 1, "soKeepalive": {"enabled": False}, "multipath": True}]),
        ("1 so_keepalive=30m::10", [{"port": 1, "soKeepalive": {"idle": 1800, "count": 10}}]),
        ("1 so_keepalive=:5s", [{"port": 1, "soKeepalive": {"interval": 5}}]),
        ("1 backlog=5 backlog=6", [{"port": 1, "backlog": 6}]),
    ],
)
def test_nginx_listen_is_parsed(line: str, listeners: list[dict[str, Any]]) -> None:
    assert parse_nginx_listen(line.split()) == listeners


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "1 reuseport",
            'invalid parameter "reuseport": it belongs to http {} and stream {}, leave it out',
        ),
        ("1 ssl=on", 'invalid parameter "ssl=on": write ssl without a value'),
        ("1 backlog", 'invalid parameter "backlog": it takes a value, backlog=VALUE'),
        ("1 address=x", 'invalid parameter "address=x"'),
        ("1 ipv6only", 'invalid parameter "ipv6only": it takes a value, ipv6only=VALUE'),
        ("1 ipv6only=ON", 'invalid ipv6only "ipv6only=ON"'),
        ("1 backlog=-1", 'invalid backlog "backlog=-1"'),
        ("1 so_keepalive=::", 'invalid so_keepalive value: "::"'),
        ("1 so_keepalive=0:0:0", 'invalid so_keepalive value: "0:0:0"'),
        ("1 so_keepalive=1:2:3:4", 'invalid so_keepalive value: "1:2:3:4"'),
        ("1 so_keepalive=1::x", 'invalid so_keepalive value: "1::x"'),
    ],
)
def test_invalid_nginx_listen_is_rejected(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse_nginx_listen(line.split())
    assert str(raised.value) == reason
