# SPDX-License-Identifier: Apache-2.0
"""docs/dovecot.md with a real Dovecot: its files, its manifests, and the log lines that it shows."""

from __future__ import annotations

import imaplib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from support.guides import dovecot as dovecots
from support.guides.blocks import Object, Page
from support.guides.clients import (
    CLIENT,
    PROXY,
    Login,
    imap_login,
    imap_login_without_tls,
    imaps_login,
    pop3_login,
    smtp_login,
)
from support.guides.dovecot import GuideDovecot
from support.guides.front import GuideFronts
from support.needs import Needs
from support.servers.programs import eventually
from support.servers.proxy import Proxy
from support.servers.tiny_mail import tiny_mail

pytestmark = pytest.mark.interop

PAGE: Final = Page("dovecot.md")
PASSWORDS: Final = {"alice": "wonder land%21"}


class World:
    """Dovecot, the proxy and the authentication service, as a test puts them together."""

    def __init__(self, dovecot: str, folder: Path, stack: ExitStack) -> None:
        self._path = dovecot
        self.version = dovecots.version_of(dovecot)
        self._stack = stack
        self.fronts = GuideFronts(folder, stack, PASSWORDS)
        self.tls = self.fronts.tls
        relay = stack.enter_context(tiny_mail("smtp"))
        self.plain = {**self.fronts.ports.take_all("imap", "pop3", "submission"), "relay_port": relay.port}
        self.special = self.fronts.ports.take_all("10143", "10110", "10587")

    def dovecot(self, added: str) -> GuideDovecot:
        """Start Dovecot with a file of the page."""
        added = added.replace("10.0.0.0/8", f"{PROXY}/32")
        for written, port in self.special.items():
            added = added.replace(f"port = {written}", f"port = {port}")
        ports = {**self.plain, **self.special}
        running = dovecots.start(self._path, self.fronts.new_folder(), added, ports, PASSWORDS)
        self._stack.callback(running.stop)
        return running

    def restart(self, dovecot: GuideDovecot, added: str) -> GuideDovecot:
        """Stop Dovecot, and start it with another file."""
        dovecot.stop()
        return self.dovecot(added)

    def proxy(self, body: Object, backends: dict[str, int]) -> tuple[Proxy, dict[int, int]]:
        """Start the proxy; ``backends`` are the ports of Dovecot by protocol."""
        front = self.fronts.start(body, backends)
        return front.proxy, front.ports


@pytest.fixture
def world(needs: Needs, open_folder: Path) -> Iterator[World]:
    path = needs("dovecot")
    with ExitStack() as stack:
        yield World(path, open_folder, stack)


def _special(world: World) -> dict[str, int]:
    return dict(zip(("imap", "pop3", "smtp"), world.special.values(), strict=True))


def _usual(world: World) -> dict[str, int]:
    return {"imap": world.plain["imap"], "pop3": world.plain["pop3"], "smtp": world.plain["submission"]}


def _with(**directives: object) -> Object:
    body = PAGE.object("manifest")
    body["spec"]["mail"].update(directives)
    return body


def _as_on_the_page(line: str) -> str:
    """Replace what differs from run to run, except the addresses' names, by the values of the page."""
    _, _, line = line.partition(" imap-login:")
    line = line.replace(f"rip={CLIENT}", "rip=203.0.113.9").replace(f"lip={PROXY}", "lip=198.51.100.7")
    line = re.sub(r"mpid=\d+", "mpid=4711", line)
    return re.sub(r"session=<[^>]+>", "session=<…>", f"imap-login:{line}")


LOGINS: Final[list[tuple[str, Login, int]]] = [
    ("imap", imap_login, 143),
    ("imap", imaps_login, 993),
    ("pop3", pop3_login, 110),
    ("submission", smtp_login, 587),
]


def test_logins_have_the_clients_address_and_tls_in_dovecots_log(world: World) -> None:
    dovecot = world.dovecot(PAGE.block("listeners"))
    proxy, ports = world.proxy(PAGE.object("manifest"), _special(world))
    for service, login, port in LOGINS:
        login(ports[port], world.tls.client(), "alice", PASSWORDS["alice"])
        logged = dovecot.logged(f"{service}-login: Info: Log", f"rip={CLIENT}")
        if service == "imap":
            assert _as_on_the_page(logged) == PAGE.block(f"log {dovecot.version}").rstrip("\n")
    assert f"method=PLAIN, rip={PROXY}," not in dovecot.log()
    proxy.event("session", result="success", client=CLIENT)


def test_cleartext_password_after_proxy_header(world: World) -> None:
    dovecot = world.dovecot(PAGE.block("listeners"))
    _, ports = world.proxy(_with(starttls="Enabled"), _special(world))
    if dovecot.version == "2.3":
        with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
            imap_login_without_tls(ports[143], "alice", PASSWORDS["alice"])
        dovecot = world.restart(dovecot, PAGE.block("listeners") + PAGE.block("cleartext 2.3"))
    imap_login_without_tls(ports[143], "alice", PASSWORDS["alice"])
    dovecot.logged("imap-login: Info: Log", f"rip={CLIENT}", "user=<alice>")


def test_ssl_required_takes_the_clients_tls_for_tls(world: World) -> None:
    certificate, key = world.tls.proxy.certificate, world.tls.proxy.key
    lines = {
        "2.3": f"ssl_cert = <{certificate}\nssl_key = <{key}\n",
        "2.4": f"ssl_server_cert_file = {certificate}\nssl_server_key_file = {key}\n",
    }
    required = f"ssl = required\n{lines[world.version]}"
    dovecot = world.dovecot(PAGE.block("listeners") + required)
    _, ports = world.proxy(_with(starttls="Enabled"), _special(world))
    imap_login(ports[143], world.tls.client(), "alice", PASSWORDS["alice"])
    dovecot.logged("imap-login: Info: Log", f"rip={CLIENT}", "user=<alice>")
    with pytest.raises(imaplib.IMAP4.error):
        imap_login_without_tls(ports[143], "alice", PASSWORDS["alice"])


def test_trusted_networks_are_compared_with_the_address_of_the_header(world: World) -> None:
    if world.version != "2.3":
        pytest.skip("Dovecot 2.4 allows the password after any PROXY header")
    world.dovecot(PAGE.block("listeners") + PAGE.block("trusted"))
    _, ports = world.proxy(_with(starttls="Enabled"), _special(world))
    with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
        imap_login_without_tls(ports[143], "alice", PASSWORDS["alice"])


def test_submission_takes_the_address_from_xclient(world: World) -> None:
    dovecot = world.dovecot(PAGE.block("trusted"))
    body = PAGE.object("xclient")
    _, ports = world.proxy(body, _usual(world))
    smtp_login(ports[587], world.tls.client(), "alice", PASSWORDS["alice"])
    dovecot.logged("submission-login: Info: Log", f"rip={CLIENT}", "user=<alice>")


def test_without_headers_sessions_have_the_proxys_address(world: World) -> None:
    dovecot = world.dovecot(PAGE.block("trusted"))
    _, ports = world.proxy(_with(proxyProtocol="Disabled"), _usual(world))
    imap_login(ports[143], world.tls.client(), "alice", PASSWORDS["alice"])
    dovecot.logged("imap-login: Info: Log", f"rip={PROXY}", "user=<alice>")


CAUSES: Final = {
    "the proxy is not in `haproxy_trusted_networks`": ("listeners", "192.0.2.0/24", {}, True),
    "a listener with `haproxy = yes`, but no `proxyProtocol`": (
        "listeners",
        "10.0.0.0/8",
        {"proxyProtocol": "Disabled"},
        True,
    ),
    "`proxyProtocol`, but a listener without `haproxy = yes`": ("listeners", "10.0.0.0/8", {}, False),
    "2.3: a client without TLS, or `proxyProtocol: V1`": (
        "listeners",
        "10.0.0.0/8",
        {"proxyProtocol": "V1"},
        True,
    ),
    "no PROXY header, and the proxy is not in `login_trusted_networks`": (
        "trusted",
        "192.0.2.0/24",
        {"proxyProtocol": "Disabled"},
        False,
    ),
}


@pytest.mark.parametrize("row", PAGE.rows("What goes wrong, and what you see then"), ids=lambda row: row[0])
def test_what_goes_wrong_is_seen_as_the_page_shows(world: World, row: list[str]) -> None:
    cause, logged, at_dovecot = row
    block, networks, directives, is_special = CAUSES[cause]
    if cause.startswith("2.3") and world.version != "2.3":
        pytest.skip("another version of Dovecot is installed")
    dovecot = world.dovecot(PAGE.block(block).replace("10.0.0.0/8", networks))
    proxy, ports = world.proxy(_with(**directives), _special(world) if is_special else _usual(world))
    with pytest.raises(imaplib.IMAP4.error) as caught:
        imap_login(ports[143], world.tls.client(), "alice", PASSWORDS["alice"])
    results, _, stage = logged.rpartition(" at ")
    session = proxy.event("session", client=CLIENT)
    assert session["result"] in re.findall(r"`(\w+)`", results)
    assert stage == f"`{session['stage']}`"
    shown = at_dovecot.strip("`")
    eventually(lambda: shown in dovecot.log() + str(caught.value), shown, timeout=20)


def test_every_row_of_the_table_is_tried() -> None:
    assert [row[0] for row in PAGE.rows("What goes wrong, and what you see then")] == list(CAUSES)
