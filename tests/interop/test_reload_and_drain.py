# SPDX-License-Identifier: Apache-2.0
"""Reload, drain, several workers, and a slow or missing authentication service, with real open sessions."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from base64 import encodebytes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import pytest

from mailproxy.supervisor.fork_server import WORKER_NAME
from support.proxy_process import process_name
from support.servers.auth_service import AuthService, Backend
from support.servers.clients import Raw
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import Plan

pytestmark = pytest.mark.interop

NewProxy = Callable[..., Proxy]
MAIL: Final = {"serverName": "front.example.org", "timeout": "10s", "proxyPassErrorMessage": True}
LOGIN: Final = b"a LOGIN dave davy\r\n"


def imap_plan(service: AuthService, ports: Ports, backend: Backend, **directives: Any) -> Plan:
    """Return a plan of one IMAP server block with one upstream."""
    plan = Plan(service, ports)
    plan.add("own", "imap", **directives)
    service.backends["/own"] = backend
    return plan


def test_two_workers_count_as_one(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Each session is counted once, in whichever worker it runs."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(plan.ports["own"])) for _ in range(40)]
        for client in clients:
            client.say(LOGIN + b"b NOOP\r\n")
        for client in clients:
            client.until(b"b OK")
        assert proxy.value("mailproxy_connections_active", server="own", protocol="imap") == 40
        assert proxy.value("mailproxy_workers") == 2
        for client in clients:
            client.say(b"c LOGOUT\r\n")
            client.rest()
    eventually(lambda: proxy.value("mailproxy_connections_active") == 0, "an end")
    assert proxy.value("mailproxy_connections_accepted_total") == 40
    assert proxy.value("mailproxy_logins_total", method="password", result="success") == 40
    assert proxy.value("mailproxy_auth_request_duration_seconds_count", outcome="ok") == 40
    assert proxy.value("mailproxy_connections_closed_total") == 40
    sessions = eventually(lambda: len(proxy.events("session")) == 40 and proxy.events("session"), "all lines")
    assert sessions
    total = sum(session["bytes_to_client"] for session in sessions)
    assert proxy.value("mailproxy_relayed_bytes_total", direction="to_client") == total


def test_a_reload_leaves_sessions_alone(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Sessions before and after login continue; new ones use the new configuration, a new port included."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    before = proxy.get("/config")
    with Raw(plan.ports["own"]) as relayed, Raw(plan.ports["own"]) as undecided:
        relayed.say(LOGIN)
        relayed.until(b"a OK")
        undecided.until(b"* OK")

        plan.servers[0]["imapCapabilities"] = ["IMAP4rev1", "XNEW"]
        plan.add("pop3-later", "pop3")
        service.backends["/pop3-later"] = Backend(dovecot.ports["pop3"])
        proxy.reload(manifest(plan.servers, MAIL, workers=2))

        assert relayed.ask(b"b NOOP").startswith(b"b OK")
        undecided.say(LOGIN)
        assert undecided.until(b"a ")[-1].startswith(b"a OK")
        with Raw(plan.ports["own"]) as fresh:
            fresh.line()
            assert b" XNEW " in fresh.ask(b"a CAPABILITY")
        with Raw(plan.ports["pop3-later"]) as fresh:
            fresh.line()
            assert fresh.ask(b"USER dave") == b"+OK"
            assert fresh.ask(b"PASS davy") == b"+OK Logged in."
    assert proxy.get("/config") != before
    assert proxy.value("mailproxy_config_last_reload_successful") == 1


def test_nobody_is_lost_over_many_reloads(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Clients connect without pause while the configuration changes ten times; each of them is logged in."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    done = threading.Event()

    def keep_coming() -> list[bytes]:
        replies = []
        while not done.is_set():
            with Raw(plan.ports["own"]) as raw:
                raw.say(LOGIN + b"b LOGOUT\r\n")
                replies.append(raw.rest().splitlines()[-1][:4])
        return replies

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(keep_coming) for _ in range(4)]
        try:
            for number in range(10):
                plan.servers[0]["imapCapabilities"] = ["IMAP4rev1", f"XROUND{number}"]
                proxy.reload(manifest(plan.servers, MAIL, workers=2))
        finally:
            done.set()
        replies = [reply for client in clients for reply in client.result()]
    assert set(replies) == {b"b OK"}
    assert proxy.value("mailproxy_logins_total", result="success") == len(replies)


def test_a_wrong_configuration_changes_nothing(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    proxy.file.write_text("apiVersion: mailproxy.dev/v1alpha1\nkind: MailProxy\nspec: {servers: 7}\n")
    proxy.signal(signal.SIGHUP)
    proxy.event("configuration_refused")
    assert proxy.value("mailproxy_config_last_reload_successful") == 0
    with Raw(plan.ports["own"]) as raw:
        raw.say(LOGIN)
        assert raw.until(b"a ")[-1].startswith(b"a OK")


def test_a_drain_waits_for_a_transfer(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """SIGTERM during an APPEND and a FETCH: both transfers complete, then the proxy exits."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    sent = b"Subject: slow\r\n\r\n" + encodebytes(os.urandom(6_000_000)).replace(b"\n", b"\r\n")
    with Raw(plan.ports["own"]) as writer, Raw(plan.ports["own"]) as waiting:
        waiting.until(b"* OK")
        writer.say(LOGIN + b"b CREATE Drained\r\nc APPEND Drained {%d}\r\n" % len(sent))
        writer.until(b"+ ")
        writer.say(sent[: len(sent) // 2])

        proxy.signal(signal.SIGTERM)
        assert waiting.rest().startswith(b"* BYE")
        assert proxy.get("/readyz")[0] == 503
        eventually(lambda: refuses(plan.ports["own"]), "closed listeners")

        writer.say(sent[len(sent) // 2 :] + b"\r\n")
        assert writer.until(b"c ")[-1].startswith(b"c OK")
        writer.say(b"d SELECT Drained\r\ne FETCH * (BODY.PEEK[])\r\n")
        announced = writer.until(b"* 1 FETCH (BODY[] {")[-1]
        read = writer.data(int(announced.split(b"{")[1].rstrip(b"}")))
        assert hashlib.sha256(read).digest() == hashlib.sha256(sent).digest()
        writer.say(b"f LOGOUT\r\n")
        writer.rest()
    assert proxy.running.ended() == 0


def refuses(port: int) -> bool:
    """Return whether no process listens on the port any more."""
    try:
        with Raw(port):
            return False
    except OSError:
        return True


def test_a_second_signal_ends_it_at_once(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, drain={"delay": "0s", "timeout": "1h"}))
    with Raw(plan.ports["own"]) as raw:
        raw.say(LOGIN)
        raw.until(b"a OK")
        proxy.signal(signal.SIGTERM)
        eventually(lambda: refuses(plan.ports["own"]), "closed listeners")
        assert raw.ask(b"b NOOP").startswith(b"b OK")
        proxy.signal(signal.SIGTERM)
        proxy.running.ended()
        raw.rest()


def test_a_slow_service_delays_only_those_who_ask(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """While fifty clients wait, another client is served at once; in the end all are logged in."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"], delay=2.0))
    plan.add("quick", "imap")
    service.backends["/quick"] = Backend(dovecot.ports["imap"])
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with ExitStack() as stack:
        patient = [stack.enter_context(Raw(plan.ports["own"])) for _ in range(50)]
        for client in patient:
            client.say(LOGIN)
        eventually(lambda: proxy.value("mailproxy_auth_requests_in_flight") == 50, "fifty questions")
        with Raw(plan.ports["quick"]) as raw:
            raw.say(LOGIN)
            assert raw.until(b"a ")[-1].startswith(b"a OK")
        assert proxy.value("mailproxy_auth_requests_in_flight") == 50
        for client in patient:
            assert client.until(b"a ")[-1].startswith(b"a OK")


def test_a_service_that_is_too_slow(service: AuthService, ports: Ports, new_proxy: NewProxy) -> None:
    plan = imap_plan(service, ports, Backend(ports.take(), delay=3.0), authHttpTimeout="500ms")
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with Raw(plan.ports["own"]) as raw:
        raw.line()
        raw.say(LOGIN)
        assert raw.rest() == b"* BAD internal server error\r\n"
    assert proxy.value("mailproxy_auth_errors_total", reason="timeout") == 1
    assert proxy.value("mailproxy_logins_total", protocol="imap", result="timeout") == 1


def test_no_service_at_all(service: AuthService, ports: Ports, new_proxy: NewProxy) -> None:
    plan = imap_plan(service, ports, Backend(1))
    plan.servers[0]["authHttp"] = f"http://127.0.0.1:{ports.take()}/"
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with Raw(plan.ports["own"]) as raw:
        raw.line()
        raw.say(LOGIN)
        assert raw.rest() == b"* BAD internal server error\r\n"
    assert proxy.value("mailproxy_auth_errors_total", reason="connect") == 1


def test_a_denial_with_a_pause_lets_the_client_try_again(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"], wait=1))
    new_proxy(manifest(plan.servers, MAIL))
    with Raw(plan.ports["own"]) as raw:
        raw.line()
        raw.say(b"a LOGIN dave wrong\r\nb LOGIN dave davy\r\n")
        assert raw.line() == b"a NO Invalid login or password"
        assert raw.until(b"b ")[-1].startswith(b"b OK")
    assert service.asked("/own")["auth-login-attempt"] == "2"


def test_a_worker_that_is_killed_is_replaced(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Its sessions end, its counters are kept, and clients soon reach a new worker."""
    plan = imap_plan(service, ports, Backend(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    accepted = "mailproxy_connections_accepted_total"
    with Raw(plan.ports["own"]) as raw:
        raw.say(LOGIN)
        raw.until(b"a OK")
        assert proxy.value(accepted) == 1
        (worker,) = workers(proxy.running.pid)
        os.kill(worker, signal.SIGKILL)
        assert raw.rest() == b""
    eventually(lambda: proxy.value("mailproxy_worker_restarts_total") == 1, "a replacement")
    eventually(lambda: proxy.get("/readyz")[0] == 200, "ready")
    with Raw(plan.ports["own"]) as raw:
        raw.say(LOGIN)
        assert raw.until(b"a ")[-1].startswith(b"a OK")
    assert proxy.value(accepted) == 2


def workers(pid: int) -> list[int]:
    """Return the worker processes of a supervisor."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [child for child in children if process_name(child) == WORKER_NAME]
