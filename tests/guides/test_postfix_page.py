# SPDX-License-Identifier: Apache-2.0
"""docs/postfix.md with a real Postfix: its lines, its manifests, and the log lines that it shows."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from support.guides import postfix as postfixes
from support.guides.blocks import Object, Page
from support.guides.clients import CLIENT, PROXY, connect, smtp
from support.guides.front import GuideFront, GuideFronts
from support.guides.postfix import GuidePostfix
from support.needs import Needs
from support.servers.programs import eventually

pytestmark = pytest.mark.interop

PAGE: Final = Page("postfix.md")
PASSWORDS: Final = {"alice": "wonder land%21"}
LOCAL, FOREIGN = "alice@example.com", "bob@example.org"
BY_XCLIENT: Final = {"mx": "10025", "submission": "10587"}
BY_HEADER: Final = {"mx": "10026", "submission": "10588"}
PROXY_NETWORK: Final = f"{PROXY}/32"


class World:
    """Postfix, the proxy and the authentication service, as a test puts them together."""

    def __init__(self, postfix: str, folder: Path, stack: ExitStack) -> None:
        self._path = postfix
        self._stack = stack
        self.fronts = GuideFronts(folder, stack, PASSWORDS)
        self.ports: dict[str, int] = {}

    def postfix(self, master: str, main: str = "", network: str = PROXY_NETWORK) -> GuidePostfix:
        """Start Postfix with lines of the page."""
        written = re.findall(r"(?m)^(\d+) inet", master)
        self.ports = self.fronts.ports.take_all("smtp", *written)
        lines = "\n" + master.replace("10.0.0.0/8", network)
        running = postfixes.start(self._path, self.fronts.new_folder(), main, lines, self.ports)
        self._stack.callback(running.stop)
        return running

    def proxy(self, body: Object, backends: Mapping[str, str]) -> GuideFront:
        """Start the proxy; ``backends`` are ports of the page for its server blocks."""
        return self.fronts.start(body, {name: self.ports[port] for name, port in backends.items()})

    def submit(self, front: GuideFront, recipient: str) -> None:
        """Log in at port 587, and send a message."""
        with smtp(front.ports[587], self.fronts.tls.client()) as client:
            client.login("alice", PASSWORDS["alice"])
            client.sendmail(LOCAL, [recipient], "Subject: test\r\n\r\ntest\r\n")

    def deliver(self, front: GuideFront, recipient: str) -> None:
        """Send a message to port 25, as another server does."""
        with smtp(front.ports[25], self.fronts.tls.client()) as client:
            client.sendmail("test@example.net", [recipient], "Subject: test\r\n\r\ntest\r\n")


@pytest.fixture
def world(needs: Needs, open_folder: Path) -> Iterator[World]:
    path = needs("postfix", by_root=True)
    needs("sasl2/libplain.so")
    with ExitStack() as stack:
        yield World(path, open_folder, stack)


def _as_on_the_page(line: str, name: str) -> str:
    line = re.sub(r"smtpd\[\d+\]", "smtpd[4711]", line[line.index(f"postfix/{name}/") :])
    line = line.replace(f"[{CLIENT}]", "[203.0.113.9]")
    number = "4F1D2242A01" if name == "submission" else "4F1D2242A02"
    return re.sub(r": [0-9A-F]{8,}: ", f": {number}: ", line)


def test_submission_has_the_clients_address_and_login(world: World) -> None:
    postfix = world.postfix(PAGE.block("master"))
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    world.submit(front, FOREIGN)
    logged = postfix.logged("postfix/submission/smtpd", ": client=")
    assert _as_on_the_page(logged, "submission") == PAGE.block("log submission").rstrip("\n")


def test_mail_from_other_servers_has_their_address_and_is_not_relayed(world: World) -> None:
    postfix = world.postfix(PAGE.block("master"))
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    world.deliver(front, LOCAL)
    logged = postfix.logged("postfix/mx/smtpd", ": client=")
    assert _as_on_the_page(logged, "mx") == PAGE.block("log mx").rstrip("\n")
    with pytest.raises(smtplib.SMTPRecipientsRefused, match="Relay access denied"):
        world.deliver(front, FOREIGN)
    postfix.logged("Relay access denied", f"RCPT from unknown[{CLIENT}]")


def test_port_for_users_refuses_clients_without_login(world: World) -> None:
    world.postfix(PAGE.block("master"))
    body = PAGE.object("manifest")
    body["spec"]["servers"][1]["smtpAuth"] = ["none"]
    front = world.proxy(body, BY_XCLIENT)
    with (
        smtp(front.ports[587], world.fronts.tls.client()) as client,
        pytest.raises(smtplib.SMTPRecipientsRefused, match="Access denied"),
    ):
        client.sendmail(LOCAL, [LOCAL], "Subject: test\r\n\r\ntest\r\n")


def test_limits_per_client_count_the_address_from_xclient(world: World) -> None:
    """With a limit of one connection a minute, which the proxy's address has used already."""
    world.postfix(PAGE.block("master"), "smtpd_client_connection_rate_limit = 1\n")
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    world.submit(front, FOREIGN)
    with pytest.raises(smtplib.SMTPException):
        world.submit(front, FOREIGN)


def test_the_pages_mynetworks_is_that_of_this_machine_alone() -> None:
    assert PAGE.block("main").splitlines()[1] == "mynetworks = 127.0.0.0/8 [::1]/128"


def test_postscreen_and_smtpd_take_the_address_from_the_header(world: World) -> None:
    postfix = world.postfix(PAGE.block("proxy master"))
    body = PAGE.object("proxy manifest")
    front = world.proxy(body, BY_HEADER)
    world.deliver(front, LOCAL)
    postfix.logged("postfix/screen/postscreen", f"CONNECT from [{CLIENT}]")
    postfix.logged("postfix/screen/postscreen", f"PASS NEW [{CLIENT}]")
    postfix.logged("postfix/screened/smtpd", f"client=unknown[{CLIENT}]")
    with smtp(front.ports[587], world.fronts.tls.client()) as client, pytest.raises(smtplib.SMTPException):
        client.login("alice", PASSWORDS["alice"])  # this Postfix has no SASL service
    postfix.logged("postfix/haproxy/smtpd", f"connect from unknown[{CLIENT}]")


def _without_xclient() -> Object:
    body = PAGE.object("manifest")
    body["spec"]["mail"] |= {"xclient": False, "proxySmtpGuard": False}
    return body


def _with_header() -> Object:
    body = PAGE.object("manifest")
    body["spec"]["mail"]["proxyProtocol"] = "V1"
    return body


def _session(front: GuideFront) -> tuple[str, str | None, str]:
    found = front.proxy.event("session", client=CLIENT)
    return found["result"], found["stage"], found["reply"] or ""


def test_unauthorized_proxy(world: World) -> None:
    world.postfix(PAGE.block("master"), network="192.0.2.0/24")
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    with pytest.raises(smtplib.SMTPException):
        world.submit(front, FOREIGN)
    row = _row("the proxy is not in `smtpd_authorized_xclient_hosts`")
    assert _session(front) == ("upstream_refused", "xclient", row[2].strip("`"))


def test_login_of_xclient_without_sasl(world: World) -> None:
    master = PAGE.block("master").replace("  -o smtpd_sasl_auth_enable=yes\n", "")
    postfix = world.postfix(master)
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    version = postfix.logged("daemon started").partition("version ")[2]
    if version.startswith("3.7."):
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            world.submit(front, FOREIGN)
        postfix.logged(_row("Postfix 3.7, no `smtpd_sasl_auth_enable`")[2].strip("`"))
    else:
        world.submit(front, FOREIGN)
        postfix.logged("sasl_method=XCLIENT, sasl_username=alice")


def test_no_sasl_mechanism(world: World) -> None:
    master = PAGE.block("master").rstrip("\n")
    nowhere = "  -o smtpd_sasl_type=dovecot\n  -o smtpd_sasl_path=nowhere\n"
    postfix = world.postfix(f"{master}\n{nowhere}")
    front = world.proxy(PAGE.object("manifest"), BY_XCLIENT)
    with pytest.raises(smtplib.SMTPException):
        world.submit(front, FOREIGN)
    assert _session(front)[:2] == ("upstream_failed", "greeting")
    postfix.logged(_row("no SASL mechanism is installed")[2].strip("`"))


def test_proxy_in_mynetworks_without_xclient_is_an_open_relay(world: World) -> None:
    assert _row("the proxy in `mynetworks`, `xclient: false`, `proxySmtpGuard: false`")
    postfix = world.postfix(PAGE.block("master"), f"mynetworks = {PROXY_NETWORK}\n")
    front = world.proxy(_without_xclient(), BY_XCLIENT)
    world.deliver(front, FOREIGN)
    postfix.logged("postfix/mx/smtpd", f"client=unknown[{PROXY}]")


def test_guard_ends_login_without_xclient(world: World) -> None:
    row = _row("the proxy in `smtpd_authorized_xclient_hosts`, `xclient: false`")
    world.postfix(PAGE.block("master"))
    body = _without_xclient()
    body["spec"]["mail"]["proxySmtpGuard"] = True
    front = world.proxy(body, BY_XCLIENT)
    with pytest.raises(smtplib.SMTPException):  # smtplib tries another mechanism after 454, and is closed
        world.submit(front, FOREIGN)
    result, stage = re.findall(r"`(\w+)`", row[1])
    front.proxy.event("session", client=CLIENT, result=result, stage=stage)


def test_proxy_without_xclient_may_not_relay(world: World) -> None:
    assert _row("no XCLIENT, `proxySmtpGuard: false`, the proxy not in `mynetworks`")
    postfix = world.postfix(PAGE.block("master"))
    front = world.proxy(_without_xclient(), {"mx": "10025", "submission": "10025"})
    with pytest.raises(smtplib.SMTPRecipientsRefused, match="Relay access denied"):
        world.submit(front, FOREIGN)
    postfix.logged("Relay access denied", f"RCPT from unknown[{PROXY}]")


def test_header_at_a_port_that_expects_none(world: World) -> None:
    row = _row("`proxyProtocol`, but a port without `smtpd_upstream_proxy_protocol`")
    postfix = world.postfix(PAGE.block("master"))
    front = world.proxy(_with_header(), BY_XCLIENT)
    with suppress(smtplib.SMTPException):  # whether it fails depends on when the reply to the header arrives
        world.submit(front, FOREIGN)
    shown, line = re.findall(r"`([^`]+)`", row[2])
    postfix.logged(line, shown)
    results = re.findall(r"`(\w+)`", row[1])
    assert front.proxy.event("session", client=CLIENT)["result"] in results


def test_no_header_at_a_port_that_expects_one(world: World) -> None:
    row = _row("a port with `smtpd_upstream_proxy_protocol`, but no `proxyProtocol`")
    postfix = world.postfix(PAGE.block("proxy master"))
    front = world.proxy(PAGE.object("manifest"), {"mx": "10588", "submission": "10588"})
    with pytest.raises(smtplib.SMTPException):
        world.submit(front, FOREIGN)
    assert _session(front)[:2] == ("upstream_refused", "greeting")
    postfix.logged(row[2].strip("`"))


def test_ipv6_client_at_a_postfix_without_ipv6(world: World) -> None:
    row = _row("`inet_protocols = ipv4`, and a client with an IPv6 address")
    world.postfix(PAGE.block("master"))  # it has inet_protocols = ipv4
    body = PAGE.object("manifest")
    body["spec"]["mail"]["setRealIpFrom"] = [f"{CLIENT}/32"]
    body["spec"]["servers"][0]["listen"][0]["proxyProtocol"] = True
    front = world.proxy(body, BY_XCLIENT)
    with connect(front.ports[25]) as client, client.makefile("rb") as lines:
        client.sendall(b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 25\r\n")
        assert lines.readline().startswith(b"220 ")
        for command in (
            b"HELO client.example.net",
            b"MAIL FROM:<test@example.net>",
            b"RCPT TO:<alice@example.com>",
        ):
            client.sendall(command + b"\r\n")
            lines.readline()
    found = eventually(lambda: front.proxy.events("session"), "the session")[-1]
    assert (found["result"], found["stage"]) == ("upstream_refused", "xclient")
    assert found["reply"].startswith(re.findall(r"`([^`]+)`", row[2])[0])


def _row(cause: str) -> list[str]:
    [found] = [row for row in PAGE.rows("What goes wrong, and what you see then") if row[0] == cause]
    return found
