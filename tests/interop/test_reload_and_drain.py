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
from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import ServerPlan

pytestmark = pytest.mark.interop

NewProxy = Callable[..., Proxy]
MAIL: Final = {"serverName": "front.example.org", "timeout": "10s", "proxyPassErrorMessage": True}
LOGIN: Final = b"a LOGIN dave davy\r\n"


def imap_plan(service: AuthService, ports: Ports, upstream_rule: AuthRule, **directives: Any) -> ServerPlan:
    """Return a plan of one IMAP server block with one upstream."""
    plan = ServerPlan(service, ports)
    plan.add("own", "imap", **directives)
    service.rules["/own"] = upstream_rule
    return plan


def test_metrics_of_two_workers_are_added_up(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Each session is counted once, in whichever worker it runs."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(plan.ports["own"])) for _ in range(40)]
        for client in clients:
            client.send(LOGIN + b"b NOOP\r\n")
        for client in clients:
            client.read_until(b"b OK")
        assert proxy.value("mailproxy_connections_active", server="own", protocol="imap") == 40
        assert proxy.value("mailproxy_workers") == 2
        for client in clients:
            client.send(b"c LOGOUT\r\n")
            client.read_to_eof()
    eventually(lambda: proxy.value("mailproxy_connections_active") == 0, "the end of all sessions")
    assert proxy.value("mailproxy_connections_accepted_total") == 40
    assert proxy.value("mailproxy_logins_total", method="password", result="success") == 40
    assert proxy.value("mailproxy_auth_request_duration_seconds_count", outcome="ok") == 40
    assert proxy.value("mailproxy_connections_closed_total") == 40
    sessions = eventually(
        lambda: len(proxy.events("session")) == 40 and proxy.events("session"), "a log line for each session"
    )
    assert sessions
    total = sum(session["bytes_to_client"] for session in sessions)
    assert proxy.value("mailproxy_relayed_bytes_total", direction="to_client") == total


def test_sessions_continue_after_a_reload(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Sessions before and after login continue; new ones use the new configuration, a new port included."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    before = proxy.get("/config")
    with RawClient(plan.ports["own"]) as logged_in, RawClient(plan.ports["own"]) as before_login:
        logged_in.send(LOGIN)
        logged_in.read_until(b"a OK")
        before_login.read_until(b"* OK")

        plan.servers[0]["imapCapabilities"] = ["IMAP4rev1", "XNEW"]
        plan.add("pop3-later", "pop3")
        service.rules["/pop3-later"] = AuthRule(dovecot.ports["pop3"])
        proxy.reload(manifest(plan.servers, MAIL, workers=2))

        assert logged_in.exchange(b"b NOOP").startswith(b"b OK")
        before_login.send(LOGIN)
        assert before_login.read_until(b"a ")[-1].startswith(b"a OK")
        with RawClient(plan.ports["own"]) as new_client:
            new_client.read_line()
            assert b" XNEW " in new_client.exchange(b"a CAPABILITY")
        with RawClient(plan.ports["pop3-later"]) as new_client:
            new_client.read_line()
            assert new_client.exchange(b"USER dave") == b"+OK"
            assert new_client.exchange(b"PASS davy") == b"+OK Logged in."
    assert proxy.get("/config") != before
    assert proxy.value("mailproxy_config_last_reload_successful") == 1


def test_no_login_fails_during_many_reloads(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Clients connect without pause while the configuration changes ten times; each of them is logged in."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, workers=2))
    done = threading.Event()

    def log_in_repeatedly() -> list[bytes]:
        replies = []
        while not done.is_set():
            with RawClient(plan.ports["own"]) as raw:
                raw.send(LOGIN + b"b LOGOUT\r\n")
                replies.append(raw.read_to_eof().splitlines()[-1][:4])
        return replies

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(log_in_repeatedly) for _ in range(4)]
        try:
            for number in range(10):
                plan.servers[0]["imapCapabilities"] = ["IMAP4rev1", f"XROUND{number}"]
                proxy.reload(manifest(plan.servers, MAIL, workers=2))
        finally:
            done.set()
        replies = [reply for client in clients for reply in client.result()]
    assert set(replies) == {b"b OK"}
    assert proxy.value("mailproxy_logins_total", result="success") == len(replies)


def test_invalid_configuration_is_refused_and_the_old_one_stays(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    proxy.file.write_text("apiVersion: mailproxy.dev/v1alpha1\nkind: MailProxy\nspec: {servers: 7}\n")
    proxy.signal(signal.SIGHUP)
    proxy.event("configuration_refused")
    assert proxy.value("mailproxy_config_last_reload_successful") == 0
    with RawClient(plan.ports["own"]) as raw:
        raw.send(LOGIN)
        assert raw.read_until(b"a ")[-1].startswith(b"a OK")


def test_drain_waits_for_transfers(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """SIGTERM during an APPEND and a FETCH: both transfers complete, then the proxy exits."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    sent = b"Subject: slow\r\n\r\n" + encodebytes(os.urandom(6_000_000)).replace(b"\n", b"\r\n")
    with RawClient(plan.ports["own"]) as writer, RawClient(plan.ports["own"]) as waiting:
        waiting.read_until(b"* OK")
        writer.send(LOGIN + b"b CREATE Drained\r\nc APPEND Drained {%d}\r\n" % len(sent))
        writer.read_until(b"+ ")
        writer.send(sent[: len(sent) // 2])

        proxy.signal(signal.SIGTERM)
        assert waiting.read_to_eof().startswith(b"* BYE")
        assert proxy.get("/readyz")[0] == 503
        eventually(lambda: is_closed(plan.ports["own"]), "closed listeners")

        writer.send(sent[len(sent) // 2 :] + b"\r\n")
        assert writer.read_until(b"c ")[-1].startswith(b"c OK")
        writer.send(b"d SELECT Drained\r\ne FETCH * (BODY.PEEK[])\r\n")
        announced = writer.read_until(b"* 1 FETCH (BODY[] {")[-1]
        read = writer.read_bytes(int(announced.split(b"{")[1].rstrip(b"}")))
        assert hashlib.sha256(read).digest() == hashlib.sha256(sent).digest()
        writer.send(b"f LOGOUT\r\n")
        writer.read_to_eof()
    assert proxy.running.wait_for_exit() == 0


def is_closed(port: int) -> bool:
    """Return whether no process listens on the port any more."""
    try:
        with RawClient(port):
            return False
    except OSError:
        return True


def test_second_sigterm_ends_the_drain(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL, drain={"delay": "0s", "timeout": "1h"}))
    with RawClient(plan.ports["own"]) as raw:
        raw.send(LOGIN)
        raw.read_until(b"a OK")
        proxy.signal(signal.SIGTERM)
        eventually(lambda: is_closed(plan.ports["own"]), "closed listeners")
        assert raw.exchange(b"b NOOP").startswith(b"b OK")
        proxy.signal(signal.SIGTERM)
        proxy.running.wait_for_exit()
        raw.read_to_eof()


def test_slow_auth_service_delays_only_its_own_clients(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """While fifty clients wait, another client is served at once; in the end all are logged in."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"], delay=2.0))
    plan.add("quick", "imap")
    service.rules["/quick"] = AuthRule(dovecot.ports["imap"])
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with ExitStack() as stack:
        waiting_clients = [stack.enter_context(RawClient(plan.ports["own"])) for _ in range(50)]
        for client in waiting_clients:
            client.send(LOGIN)
        eventually(lambda: proxy.value("mailproxy_auth_requests_in_flight") == 50, "fifty requests")
        with RawClient(plan.ports["quick"]) as raw:
            raw.send(LOGIN)
            assert raw.read_until(b"a ")[-1].startswith(b"a OK")
        assert proxy.value("mailproxy_auth_requests_in_flight") == 50
        for client in waiting_clients:
            assert client.read_until(b"a ")[-1].startswith(b"a OK")


def test_auth_http_timeout_ends_the_session(service: AuthService, ports: Ports, new_proxy: NewProxy) -> None:
    plan = imap_plan(service, ports, AuthRule(ports.take(), delay=3.0), authHttpTimeout="500ms")
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with RawClient(plan.ports["own"]) as raw:
        raw.read_line()
        raw.send(LOGIN)
        assert raw.read_to_eof() == b"* BAD internal server error\r\n"
    assert proxy.value("mailproxy_auth_errors_total", reason="timeout") == 1
    assert proxy.value("mailproxy_logins_total", protocol="imap", result="timeout") == 1


def test_unreachable_auth_service_gets_internal_error_reply(
    service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, AuthRule(1))
    plan.servers[0]["authHttp"] = f"http://127.0.0.1:{ports.take()}/"
    proxy = new_proxy(manifest(plan.servers, MAIL))
    with RawClient(plan.ports["own"]) as raw:
        raw.read_line()
        raw.send(LOGIN)
        assert raw.read_to_eof() == b"* BAD internal server error\r\n"
    assert proxy.value("mailproxy_auth_errors_total", reason="connect") == 1


def test_denied_login_with_auth_wait_can_be_repeated(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"], wait=1))
    new_proxy(manifest(plan.servers, MAIL))
    with RawClient(plan.ports["own"]) as raw:
        raw.read_line()
        raw.send(b"a LOGIN dave wrong\r\nb LOGIN dave davy\r\n")
        assert raw.read_line() == b"a NO Invalid login or password"
        assert raw.read_until(b"b ")[-1].startswith(b"b OK")
    assert service.latest_request("/own")["auth-login-attempt"] == "2"


def test_killed_worker_is_replaced(
    dovecot: Dovecot, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Its sessions end, its counters are kept, and clients soon reach a new worker."""
    plan = imap_plan(service, ports, AuthRule(dovecot.ports["imap"]))
    proxy = new_proxy(manifest(plan.servers, MAIL))
    accepted = "mailproxy_connections_accepted_total"
    with RawClient(plan.ports["own"]) as raw:
        raw.send(LOGIN)
        raw.read_until(b"a OK")
        assert proxy.value(accepted) == 1
        (worker,) = workers(proxy.running.pid)
        os.kill(worker, signal.SIGKILL)
        assert raw.read_to_eof() == b""
    eventually(lambda: proxy.value("mailproxy_worker_restarts_total") == 1, "a replacement")
    eventually(lambda: proxy.get("/readyz")[0] == 200, "ready")
    with RawClient(plan.ports["own"]) as raw:
        raw.send(LOGIN)
        assert raw.read_until(b"a ")[-1].startswith(b"a OK")
    assert proxy.value(accepted) == 2


def workers(pid: int) -> list[int]:
    """Return the worker processes of a supervisor."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [child for child in children if process_name(child) == WORKER_NAME]
