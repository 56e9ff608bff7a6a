# SPDX-License-Identifier: Apache-2.0
"""Names of clients and of upstreams, resolved by dnsmasq and Unbound."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mailproxy.dns import Resolver
from mailproxy.dns.upstream_names import Resolved, UpstreamNames
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import TEMPUNAVAIL, UNAVAILABLE, UpstreamServer
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ResolverConfig
from support.dns_server import client_name, free_port
from support.needs import Needs

pytestmark = pytest.mark.interop

RECORDS = {
    "mail.example.test": ("192.0.2.1", "2001:db8::1"),
    "liar.example.test": ("192.0.2.99",),
}
REVERSE = {
    "192.0.2.1": "mail.example.test",
    "2001:db8::1": "mail.example.test",
    "192.0.2.2": "liar.example.test",
    "192.0.2.3": "absent.example.test",
    "192.0.2.4": "under_score.example.test",
}


def dnsmasq(folder: Path, port: int) -> list[str]:
    lines = [
        f"port={port}",
        "listen-address=127.0.0.1",
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "local=/#/",
    ]
    lines += [f"address=/{name}/{address}" for name, addresses in RECORDS.items() for address in addresses]
    lines += [f"ptr-record={_reverse_name(address)},{name}" for address, name in REVERSE.items()]
    (folder / "dnsmasq.conf").write_text("\n".join([*lines, f"pid-file={folder}/pid", "user=", ""]))
    return ["dnsmasq", "--keep-in-foreground", f"--conf-file={folder}/dnsmasq.conf"]


def unbound(folder: Path, port: int) -> list[str]:
    data = [
        f'"{name}. 60 IN {"AAAA" if ":" in address else "A"} {address}"'
        for name, addresses in RECORDS.items()
        for address in addresses
    ]
    data += [f'"{_reverse_name(address)}. 60 IN PTR {name}."' for address, name in REVERSE.items()]
    zones = ["example.test.", "2.0.192.in-addr.arpa.", "8.b.d.0.1.0.0.2.ip6.arpa."]
    lines = [
        "server:",
        f"port: {port}",
        "interface: 127.0.0.1",
        'chroot: ""',
        'username: ""',
        "use-syslog: no",
    ]
    lines += [f'directory: "{folder}"', f'pidfile: "{folder}/pid"', "num-threads: 1"]
    lines += [f'local-zone: "{zone}" static' for zone in zones]
    lines += [f"local-data: {entry}" for entry in data]
    (folder / "unbound.conf").write_text("\n".join([*lines, "remote-control:", "control-enable: no", ""]))
    return ["unbound", "-d", "-c", f"{folder}/unbound.conf"]


def _reverse_name(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


SERVER_COMMANDS = {"dnsmasq": dnsmasq, "unbound": unbound}


@asynccontextmanager
async def dns_server_process(name: str, path: str, folder: Path) -> AsyncIterator[str]:
    port = free_port()
    command = [path, *SERVER_COMMANDS[name](folder, port)[1:]]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await _wait_until_listening(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _wait_until_listening(port: int) -> None:
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise AssertionError("the DNS server did not start")


@pytest.mark.parametrize("server", sorted(SERVER_COMMANDS))
async def test_client_names_are_confirmed_by_dns_servers(needs: Needs, server: str, tmp_path: Path) -> None:
    async with dns_server_process(server, needs(server), tmp_path) as address:
        resolver = Resolver(ResolverConfig(addresses=(address,)), timeout=5.0, metrics=WorkerMetrics())
        clients = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]
        names = [await client_name(resolver, client) for client in clients]
        await resolver.close()
    assert names == [
        b"mail.example.test",
        b"mail.example.test",
        UNAVAILABLE,  # the name resolves to another address
        UNAVAILABLE,  # the name does not resolve
        TEMPUNAVAIL,  # the PTR record's value is not a host name
        UNAVAILABLE,  # there is no PTR record
    ]


@pytest.mark.parametrize("server", sorted(SERVER_COMMANDS))
async def test_names_of_upstreams_are_resolved_by_dns_servers(
    needs: Needs, server: str, tmp_path: Path
) -> None:
    async with dns_server_process(server, needs(server), tmp_path) as address:
        names = UpstreamNames(ResolverConfig(addresses=(address,)), timeout=5.0, metrics=WorkerMetrics())

        async def resolve(*hosts: str) -> Resolved:
            found: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
            names.resolve([UpstreamServer(host, 143) for host in hosts], found.set_result)
            return await found

        both = await resolve("mail.example.test")
        listed = await resolve("liar.example.test", "absent.example.test")
        absent = await resolve("absent.example.test")
        await names.close()
    assert isinstance(both, tuple)
    assert {each.address for each in both} == {"192.0.2.1", "2001:db8::1"}
    assert isinstance(listed, tuple)
    assert [each.address for each in listed] == ["192.0.2.99"]
    assert isinstance(absent, UpstreamError)
    assert "the name does not exist, or has no address" in str(absent)
