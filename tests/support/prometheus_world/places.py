# SPDX-License-Identifier: Apache-2.0
"""The servers of the traffic: a proxy with a server block for each fault, and its upstreams."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mailproxy_config.model import Protocol, ProxySsl
from mailproxy_config.upstream_members import (
    MEMBERS_KEY,
    Member,
    MemberDocument,
    MemberList,
    dump_members,
)
from support.demo_servers import ACCOUNT, DemoServers, demo_servers
from support.dns_server import DnsServer, address_record, dns_server, ptr_record, reply_with
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService, auth_service
from support.servers.certificates import Certificates, certificates
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import certificate_element
from support.upstream_tls import mail_server, session

_CLIENT: Final = "1.0.0.127.in-addr.arpa"
_PATIENCE: Final = 60.0
_GROUP: Final = "dovecot"


@dataclass
class Places:
    """The running servers and their ports.

    Attributes:
        proxies: One or more with the same configuration, as the pods of a Deployment.
        ports: The ports of each proxy, by server block; ``imaps`` is the one with TLS.
    """

    mail: DemoServers
    dns: DnsServer
    tls: Certificates
    service: AuthService
    proxies: list[Proxy] = field(default_factory=list)
    ports: list[dict[str, int]] = field(default_factory=list)


@contextmanager
def places(folder: Path, pods: int = 1) -> Iterator[Places]:
    """Start all servers, and stop them afterwards."""
    taken = Ports()
    with ExitStack() as stack:
        mail = stack.enter_context(demo_servers())
        dns = stack.enter_context(_dns_in_background())
        service = stack.enter_context(auth_service({ACCOUNT.user: ACCOUNT.password}))
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind(("127.0.0.1", 0))
        service.rules |= {
            "/dead": AuthRule(taken.take()),
            "/slow": AuthRule(mail.ports["imap"], delay=0.7),
        }
        (folder / "tls").mkdir()
        found = Places(mail, dns, certificates(folder / "tls"), service)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(found.tls.proxy.certificate, found.tls.proxy.key)
        secured = stack.enter_context(mail_server(session(Protocol.IMAP, ProxySsl.ENABLED), context))
        service.rules["/secured"] = AuthRule(secured.port)
        (folder / MEMBERS_KEY).write_text(_members(mail.ports["imap"]))
        for number in range(pods):
            ports, body = _planned(found, taken, f"127.0.0.1:{silent.getsockname()[1]}")
            found.ports.append(ports)
            options = ("--workers", "2")
            found.proxies.append(
                proxies.start(folder / f"edge-{number}", body, *options, members=folder / MEMBERS_KEY)
            )
            stack.callback(found.proxies[-1].stop)
        yield found


def _planned(found: Places, taken: Ports, silent: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Return one proxy's ports and its manifest."""
    servers: list[dict[str, Any]] = []
    ports: dict[str, int] = {}

    def serve(name: str, protocol: str, auth: str = "", *, tls: bool = False, **directives: Any) -> None:
        ports[name] = taken.take()
        listen: list[dict[str, Any]] = [{"address": "127.0.0.1", "port": ports[name]}]
        if directives.pop("behind", False):
            listen[0]["proxyProtocol"] = True
        if tls:
            ports[f"{name}s"] = taken.take()
            listen.append({"address": "127.0.0.1", "port": ports[f"{name}s"], "ssl": True})
            directives["starttls"] = "Enabled"
        service = {"authHttp": auth} if auth else {}
        servers.append({"name": name, "protocol": protocol, "listen": listen, **service, **directives})

    good = found.mail.auth_url
    named = {"addresses": [found.dns.address], "valid": "1s"}
    serve("imap", "imap", good, tls=True, imapAuth=["plain", "login", "cram-md5"])
    serve("pop3", "pop3", good, tls=True, pop3Auth=["plain", "apop", "cram-md5"])
    serve("smtp", "smtp", good, tls=True, xclient=True, resolver=named)
    rate: dict[str, Any] = {"limitReq": [{"zone": "rate"}], "limitReqDryRun": True}
    serve("balanced", "imap", good, behind=True, setRealIpFrom=["127.0.0.0/8"], **rate)
    serve("dead", "imap", found.service.url("/dead"))
    secured: dict[str, Any] = {"proxySsl": "Enabled", "proxySslVerify": False}
    serve("secured", "imap", found.service.url("/secured"), **secured)
    serve("unresumed", "imap", found.service.url("/secured"), **secured, proxySslSessionReuse=False)
    serve("slow", "imap", found.service.url("/slow"), authHttpTimeout="300ms")
    serve("lost", "pop3", f"http://127.0.0.1:{taken.take()}/")
    silenced = {"addresses": [silent]}
    serve("nameless", "smtp", good, resolver=silenced, resolverTimeout="300ms")
    route = {"domains": ["*"], "upstream": _GROUP}
    loopback: dict[str, Any] = {"authHttpServerNetworks": ["127.0.0.0/8"]}
    serve("members", "imap", authMode="Upstream", routes=[route], **loopback)
    mail = {
        "serverName": "mail.example.com",
        "xclient": False,
        "sslCertificate": [certificate_element(found.tls.proxy)],
        "limitConnZone": [{"zone": "user", "key": "$remote_user", "size": "32k"}],
        "limitConn": [{"zone": "user", "connections": 1000}],
        "limitReqZone": [{"zone": "rate", "key": "$remote_user", "size": "32k", "rate": "1r/m"}],
    }
    group = {"name": _GROUP, "service": {"name": _GROUP, "namespace": "mail"}, "hash": "User"}
    return ports, manifest(servers, mail, workerConnections=60, upstreams=[group])


def _members(port: int) -> str:
    """Return a document with one ready member on loopback."""
    member = Member(id="dovecot-0", addresses=("127.0.0.1",), ports={"143": port})
    return dump_members(MemberDocument(1, {_GROUP: MemberList(service=f"mail/{_GROUP}", members=(member,))}))


@contextmanager
def _dns_in_background() -> Iterator[DnsServer]:
    """Run a DNS server in an event loop in its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = AsyncExitStack()
    try:
        yield asyncio.run_coroutine_threadsafe(_opened(stack), loop).result(_PATIENCE)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(_PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        loop.close()


async def _opened(stack: AsyncExitStack) -> DnsServer:
    dns = await stack.enter_async_context(dns_server())
    dns.set_ptr(_CLIENT, ptr_record("client.example.com", ttl=1))
    dns.zone["client.example.com", "A"] = reply_with(address_record("127.0.0.1", ttl=1))
    return dns
