# SPDX-License-Identifier: Apache-2.0
"""Fixtures of real servers; each is started once, and only where it is installed."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from support.needs import Needs
from support.parity.compared_programs import require_nginx
from support.servers import dovecot as dovecots
from support.servers import nginx as nginxes
from support.servers import postfix as postfixes
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService, auth_service
from support.servers.certificates import Certificates, certificates
from support.servers.clients import Listeners
from support.servers.dovecot import Dovecot
from support.servers.nginx import Nginx
from support.servers.postfix import DovecotPorts, Postfix
from support.servers.programs import Ports
from support.servers.shared_proxy import ServerPlan, SharedProxy, shared_manifest

PASSWORDS: Final = {"alice": "wonder land%21", "bob": 'buil"der\\', "carol": "christmas", "dave": "davy"}
"""They contain a space, a percent sign, a quote and a backslash, which protocols have to escape."""

_BOUND_SECONDS: Final = 60


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Abort a test that hangs."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"the test was still running after {_BOUND_SECONDS} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(_BOUND_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Create a folder that every user may enter: pytest's own are private, and servers change their user."""
    made = Path(tempfile.mkdtemp(prefix="mailproxy-interop-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def new_folder(folder: Path) -> Callable[[str], Path]:
    """Create more folders like ``folder``."""

    def new(name: str) -> Path:
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        made.chmod(0o755)
        return made

    return new


@pytest.fixture(scope="session")
def ports() -> Ports:
    """Allocate ports."""
    return Ports()


@pytest.fixture(scope="session")
def postfix_ports(ports: Ports) -> dict[str, int]:
    """Ports of Postfix; allocated before Dovecot starts, because its configuration needs them."""
    return postfixes.take_ports(ports)


@pytest.fixture(scope="session")
def service() -> Iterator[AuthService]:
    """The authentication service; the fixtures of the servers set the upstream of each path."""
    with auth_service(dict(PASSWORDS)) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _unchanged_passwords(service: AuthService) -> Iterator[None]:
    """Restore the passwords that a module has changed: all modules share the service."""
    before = dict(service.passwords)
    yield
    service.passwords.clear()
    service.passwords.update(before)


@pytest.fixture(scope="session")
def tls(new_folder: Callable[[str], Path]) -> Certificates:
    """Certificates of the servers and clients."""
    return certificates(new_folder("tls"))


@pytest.fixture(scope="session")
def dovecot(
    needs: Needs,
    new_folder: Callable[[str], Path],
    ports: Ports,
    postfix_ports: dict[str, int],
    service: AuthService,
) -> Iterator[Dovecot]:
    """Dovecot, with Postfix as the relay of its submission service."""
    path = needs("dovecot")
    running = dovecots.start(path, new_folder("dovecot"), ports, PASSWORDS, postfix_ports["smtp"])
    for protocol in ("imap", "pop3"):
        for name in (protocol, f"{protocol}-required", f"{protocol}-optional", f"{protocol}-untrusting"):
            service.rules[f"/{name}"] = AuthRule(running.ports[protocol])
        for version in ("v1", "v2"):
            service.rules[f"/{protocol}-{version}"] = AuthRule(running.ports[f"{protocol}_haproxy"])
    service.rules["/imap-behind"] = AuthRule(running.ports["imap_haproxy"])
    service.rules["/pop3-behind"] = AuthRule(running.ports["pop3"])
    service.rules["/submission"] = AuthRule(running.ports["submission"])
    service.rules["/submission-x"] = AuthRule(running.ports["submission"])
    yield running
    running.running.stop()


@pytest.fixture(scope="session")
def postfix(
    needs: Needs,
    new_folder: Callable[[str], Path],
    postfix_ports: dict[str, int],
    dovecot: Dovecot,
    service: AuthService,
) -> Iterator[Postfix]:
    """Postfix, which delivers to Dovecot and verifies passwords with Dovecot."""
    path = needs("postfix", by_root=True)
    dovecot_ports = DovecotPorts(dovecot.ports["lmtp"], dovecot.ports["sasl"])
    running = postfixes.start(path, new_folder("postfix"), postfix_ports, dovecot_ports, PASSWORDS)
    for name in ("smtp", "smtp-bare", "mx", "smtp-behind", "smtp-no-ca"):
        service.rules[f"/{name}"] = AuthRule(running.ports["smtp"])
    for version in ("v1", "v2"):
        service.rules[f"/smtp-{version}"] = AuthRule(running.ports["smtp_haproxy"])
    yield running
    running.stop()


@pytest.fixture(scope="session")
def shared_proxy(
    service: AuthService, tls: Certificates, ports: Ports, new_folder: Callable[[str], Path]
) -> Iterator[SharedProxy]:
    """The proxy that most tests use; ``support/servers/shared_proxy.py`` lists its server blocks."""
    plan = ServerPlan(service, ports)
    service.rules["/imap-dead"] = AuthRule(ports.take())
    proxy = proxies.start(new_folder("shared-proxy"), shared_manifest(plan, tls))
    yield SharedProxy(proxy, plan.ports)
    proxy.stop()


@pytest.fixture(scope="session")
def nginx(
    service: AuthService,
    tls: Certificates,
    ports: Ports,
    new_folder: Callable[[str], Path],
) -> Iterator[Nginx]:
    """nginx with server blocks of the same names."""
    running = nginxes.start_mail(require_nginx(), new_folder("nginx"), service, tls, ports)
    yield running
    running.running.stop()


@pytest.fixture(scope="session", params=["mailproxy", "nginx"])
def proxy_or_nginx(request: pytest.FixtureRequest) -> Listeners:
    """The proxy, or nginx in its place: tests with this fixture expect the behaviour of nginx."""
    found: Listeners = request.getfixturevalue("shared_proxy" if request.param == "mailproxy" else "nginx")
    return found


@pytest.fixture
def new_proxy(new_folder: Callable[[str], Path]) -> Iterator[Callable[..., proxies.Proxy]]:
    """Start proxies for one test, from a manifest or the text of an ``nginx.conf``, and options."""
    started: list[proxies.Proxy] = []

    def new(body: dict[str, object] | str, *options: str) -> proxies.Proxy:
        started.append(proxies.start(new_folder("proxy"), body, *options))
        return started[-1]

    yield new
    for proxy in started:
        proxy.stop()
