# SPDX-License-Identifier: Apache-2.0
"""The sockets that a configuration needs, and its host names."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net.listen_plan import (
    ListenRef,
    SocketPlan,
    diff_plans,
    is_host_name,
    plan_sockets,
    resolve_names,
)
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ByteCount, KeepAlive, ListenConfig, Protocol, ProxyConfig
from support.configs import server

NAMES = {
    "mail.example": ("192.0.2.1", "2001:db8::1"),
    "same.example": ("192.0.2.1", "2001:DB8:0::1", "192.0.2.1"),
}


def line(address: str, port: int | None = 143, **parameters: Any) -> ListenConfig:
    return ListenConfig(address=address, port=port, **parameters)


def config(*servers: tuple[ListenConfig, ...]) -> ProxyConfig:
    return ProxyConfig(
        servers=tuple(server(Protocol.IMAP, name=f"s{n}", listen=some) for n, some in enumerate(servers))
    )


def shape(*servers: tuple[ListenConfig, ...]) -> dict[str, tuple[ListenRef, dict[str, ListenRef]]]:
    return {p.key: (p.default, dict(p.routes)) for p in plan_sockets(config(*servers), NAMES)}


R00, R01, R02, R10 = ListenRef(0, 0), ListenRef(0, 1), ListenRef(0, 2), ListenRef(1, 0)


LOCAL, LOCAL_2, BOTH = "127.0.0.1", "127.0.0.2", "mail.example"
V4, V6 = "0.0.0.0:143", "[::]:143"


@pytest.mark.parametrize(
    ("servers", "sockets"),
    [
        ([], {}),
        ([[line("*")]], {V4: (R00, {})}),
        ([[line("0.0.0.0")]], {V4: (R00, {})}),
        ([[line(LOCAL)]], {"127.0.0.1:143": (R00, {})}),
        ([[line("[::]")]], {V6: (R00, {})}),
        ([[line("[2001:DB8:0:0::1]")]], {"[2001:db8::1]:143": (R00, {})}),
        ([[line("unix:/a", None), line("unix:/b", None)]], {"unix:/a": (R00, {}), "unix:/b": (R01, {})}),
        # without a wildcard, every address has its own socket
        ([[line(LOCAL)], [line(LOCAL_2)]], {"127.0.0.1:143": (R00, {}), "127.0.0.2:143": (R10, {})}),
        # a wildcard also accepts connections to other addresses of its port
        ([[line(LOCAL)], [line("*")]], {V4: (R10, {LOCAL: R00})}),
        ([[line("*"), line(LOCAL), line(LOCAL_2)]], {V4: (R00, {LOCAL: R01, LOCAL_2: R02})}),
        # except lines with bind; the parameters of the wildcard do not matter
        ([[line("*")], [line(LOCAL, bind=True)]], {V4: (R00, {}), "127.0.0.1:143": (R10, {})}),
        ([[line("*", bind=True)], [line(LOCAL)]], {V4: (R00, {LOCAL: R10})}),
        # and not those of another port or family
        ([[line("*"), line(LOCAL, 993)]], {V4: (R00, {}), "127.0.0.1:993": (R01, {})}),
        ([[line("*"), line("[::1]")]], {V4: (R00, {}), "[::1]:143": (R01, {})}),
        ([[line("[::]", ipv6only=False), line("[::1]")]], {V6: (R00, {"::1": R01})}),
        ([[line("[::]", ipv6only=False), line("*")]], {V6: (R00, {}), V4: (R01, {})}),
        ([[line("[::]"), line("[::ffff:c000:201]")]], {V6: (R00, {"::ffff:192.0.2.1": R01})}),
        # a name means all its addresses
        ([[line(BOTH)]], {"192.0.2.1:143": (R00, {}), "[2001:db8::1]:143": (R00, {})}),
        ([[line("same.example")]], {"192.0.2.1:143": (R00, {}), "[2001:db8::1]:143": (R00, {})}),
        ([[line(BOTH), line("*")]], {"[2001:db8::1]:143": (R00, {}), V4: (R01, {"192.0.2.1": R00})}),
    ],
)
def test_listen_lines_become_sockets(
    servers: list[list[ListenConfig]], sockets: dict[str, tuple[ListenRef, dict[str, ListenRef]]]
) -> None:
    assert shape(*map(tuple, servers)) == sockets


def test_socket_has_the_options_of_its_line() -> None:
    keepalive = KeepAlive(idle=1800)
    full = line(
        "[::1]",
        backlog=7,
        rcvbuf=ByteCount(4096),
        sndbuf=ByteCount(8192),
        ipv6only=False,
        so_keepalive=keepalive,
        multipath=True,
    )
    assert plan_sockets(config((full,)), {}) == (
        SocketPlan(
            key="[::1]:143",
            family=socket.AF_INET6,
            address="::1",
            port=143,
            backlog=7,
            rcvbuf=4096,
            sndbuf=8192,
            ipv6only=False,
            keepalive=keepalive,
            multipath=True,
            default=R00,
        ),
    )


def test_tcp_options_are_not_set_on_unix_sockets() -> None:
    tcp: dict[str, Any] = {"so_keepalive": KeepAlive(), "multipath": True, "ipv6only": False}
    (planned,) = plan_sockets(config((line("unix:/run/a", None, rcvbuf=ByteCount(4096), **tcp),)), {})
    assert planned.is_unix
    assert (planned.keepalive, planned.multipath, planned.ipv6only) == (None, False, True)
    assert planned.rcvbuf == 4096
    (planned,) = plan_sockets(config((line("*", **tcp),)), {})
    assert (planned.keepalive, planned.multipath, planned.ipv6only) == (KeepAlive(), True, True)


@pytest.mark.parametrize(
    ("servers", "problems"),
    [
        (
            [[line("192.0.2.1")], [line("mail.example")]],
            ["servers[1].listen[0]: 192.0.2.1:143 is already taken by servers[0].listen[0]"],
        ),
        (
            [[line("mail.example"), line("same.example")]],
            [
                "servers[0].listen[1]: 192.0.2.1:143 is already taken by servers[0].listen[0]",
                "servers[0].listen[1]: [2001:db8::1]:143 is already taken by servers[0].listen[0]",
            ],
        ),
        (
            [[line("unix:/run/a", None)], [line("unix:/run/a", None)]],
            ["servers[1].listen[0]: unix:/run/a is already taken by servers[0].listen[0]"],
        ),
    ],
)
def test_each_address_belongs_to_one_listen_line(
    servers: list[list[ListenConfig]], problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_sockets(config(*map(tuple, servers)), NAMES)
    assert str(refused.value).splitlines() == problems


@pytest.mark.parametrize(
    ("address", "is_name"),
    [
        ("*", False),
        ("127.0.0.1", False),
        ("[::1]", False),
        ("unix:/run/a", False),
        ("localhost", True),
        ("mail.example.com", True),
    ],
)
def test_only_host_names_are_looked_up(address: str, is_name: bool) -> None:
    assert is_host_name(address) is is_name


@given(
    st.lists(
        st.builds(
            line,
            st.sampled_from(["*", "127.0.0.1", "127.0.0.2", "[::]", "[::1]", "unix:/a", "mail.example"]),
            st.sampled_from([110, 143]),
            bind=st.booleans(),
        ),
        max_size=6,
    )
)
def test_every_line_has_exactly_one_route(lines: list[ListenConfig]) -> None:
    try:
        sockets = plan_sockets(config(tuple(lines)), NAMES)
    except ConfigError:
        return
    reached = [route for planned in sockets for route in (planned.default, *planned.routes.values())]
    assert {route.listen for route in reached} == set(range(len(lines)))
    assert len(reached) == len(set(reached)) + sum(
        entry.address == "mail.example" for entry in lines
    )  # two addresses
    assert len({planned.key for planned in sockets}) == len(sockets)


OLD = SocketPlan(key="127.0.0.1:143", family=socket.AF_INET, address="127.0.0.1", port=143, default=R00)
GIVEN = replace(OLD, rcvbuf=4096, sndbuf=4096, keepalive=KeepAlive(idle=10, interval=5, count=3))


@pytest.mark.parametrize(
    ("old", "changes", "stays"),
    [
        (OLD, {}, True),
        (OLD, {"backlog": 7}, True),
        (OLD, {"default": R10, "routes": {"127.0.0.1": R00}}, True),
        (OLD, {"rcvbuf": 4096, "sndbuf": 4096, "keepalive": KeepAlive()}, True),
        (GIVEN, {"rcvbuf": 8192, "keepalive": KeepAlive(idle=11, interval=5, count=3)}, True),
        # options change in place, but a default cannot be restored
        (replace(OLD, keepalive=KeepAlive()), {"keepalive": KeepAlive(enabled=False)}, True),
        (replace(OLD, keepalive=KeepAlive()), {"keepalive": None}, False),
        (GIVEN, {"keepalive": KeepAlive(idle=10, interval=5)}, False),
        (GIVEN, {"rcvbuf": None}, False),
        (GIVEN, {"sndbuf": None}, False),
        # fixed once a socket is bound
        (OLD, {"multipath": True}, False),
        (OLD, {"ipv6only": False}, False),
    ],
)
def test_socket_stays_if_it_can_take_the_new_options(
    old: SocketPlan, changes: dict[str, Any], stays: bool
) -> None:
    new = replace(old, **changes)
    found = diff_plans((old,), (new,))
    assert (found.stays, found.opens, found.closes) == (((new,), (), ()) if stays else ((), (new,), (old,)))


def test_unix_socket_stays_with_any_change() -> None:
    old = replace(GIVEN, key="unix:/run/a", family=socket.AF_UNIX, address="/run/a", keepalive=None)
    new = replace(old, rcvbuf=None)
    assert diff_plans((old,), (new,)).stays == (new,)


def test_new_addresses_open_and_removed_ones_close() -> None:
    gone, stays, comes = (replace(OLD, key=key) for key in "abc")
    found = diff_plans((gone, stays), (stays, comes))
    assert (found.stays, found.opens, found.closes) == ((stays,), (comes,), (gone,))


def listening_on(*addresses: str) -> ProxyConfig:
    listen = tuple(ListenConfig(address=address, port=143) for address in addresses)
    return ProxyConfig(servers=(server(Protocol.IMAP, listen=listen),))


def test_system_resolver_is_used() -> None:
    found = resolve_names(listening_on("*", "127.0.0.1", "[::1]", "unix:/run/a", "localhost"))
    assert set(found) == {"localhost"}
    assert set(found["localhost"]) <= {"127.0.0.1", "::1"}
    assert found["localhost"]


def test_repeated_addresses_are_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def lookup(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        looked_up.append(name)
        return [(0, 0, 0, "", (address, 0)) for address in ("192.0.2.1", "fe80::1%eth0", "192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert resolve_names(listening_on("mail.example", "mail.example")) == {
        "mail.example": ("192.0.2.1", "fe80::1")
    }
    assert looked_up == ["mail.example"]


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "?"), UnicodeError("label too long")])
def test_every_line_with_an_unknown_name_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lookup(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(ConfigError) as refused:
        resolve_names(listening_on("a.example", "*", "a.example"))
    assert refused.value.problems == (
        Problem("servers[0].listen[0].address", "host not found: a.example"),
        Problem("servers[0].listen[2].address", "host not found: a.example"),
    )


def test_names_in_set_real_ip_from_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
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
