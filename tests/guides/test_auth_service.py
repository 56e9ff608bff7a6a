# SPDX-License-Identifier: Apache-2.0
"""The example authentication service: by itself, behind the real proxy, and its manifests."""

from __future__ import annotations

import http.client
import imaplib
import json
import poplib
import re
import signal
import smtplib
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from support.example_auth import AUTH, PROGRAM
from support.servers import proxy as proxies
from support.servers.programs import Ports, Running, eventually, run_program
from support.servers.proxy import Proxy, manifest
from support.servers.tiny_mail import TinyMail, tiny_mail

KEY: Final = "key-of-this-test"
PASSWORDS: Final = {"alice": "wonder land%", "bob": "builder-7Qx"}
PROTOCOLS: Final = ("imap", "pop3", "smtp")


class Started:
    """The service as a process, with its users file."""

    def __init__(self, folder: Path, port: int, users: str | None, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.users = folder / "users.txt"
        if users is not None:
            self.users.write_text(users)
        command = [sys.executable, "-u", str(PROGRAM), "serve", "--users", str(self.users)]
        command += ["--listen", f"127.0.0.1:{port}", "--drain-delay", "0.2", *options]
        self.port = port
        self.running = Running(command, output=folder / "auth.log", env={"AUTH_KEY": KEY})
        self.running.wait_for_ports(port)

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.running.output_text().splitlines() if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    def write(self, users: str) -> None:
        """Replace the file as the kubelet does, and wait until it was read."""
        before = len(self.events("users_loaded") + self.events("users_invalid"))
        new = self.users.with_suffix(".new")
        new.write_text(users)
        new.replace(self.users)
        eventually(
            lambda: len(self.events("users_loaded") + self.events("users_invalid")) > before, "the file"
        )

    def send_request(self, **headers: str) -> dict[str, str]:
        """Send a request as the proxy does; return the headers of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", "/auth", headers={"X-Auth-Key": KEY, **named})
        response = connection.getresponse()
        response.read()
        connection.close()
        return {"status": str(response.status), **dict(response.getheaders())}


def login(protocol: str, user: str, password: str, **more: str) -> dict[str, str]:
    escaped = re.sub(r"[\x00-\x20%]", lambda found: f"%{ord(found[0]):02X}", password)
    return {
        "Auth_Method": "plain",
        "Auth_User": user,
        "Auth_Pass": escaped,
        "Auth_Protocol": protocol,
        "Auth_Login_Attempt": "1",
        "Client_IP": "192.0.2.42",
        **more,
    }


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports()


@pytest.fixture(scope="module")
def users() -> str:
    return f"alice:{AUTH.hash_password(PASSWORDS['alice'].encode())}\nbob:{{PLAIN}}{PASSWORDS['bob']}\n"


@pytest.fixture(scope="module")
def mail() -> Iterator[dict[str, TinyMail]]:
    with ExitStack() as stack:
        yield {protocol: stack.enter_context(tiny_mail(protocol)) for protocol in PROTOCOLS}


@pytest.fixture(scope="module")
def service(
    ports: Ports, users: str, mail: dict[str, TinyMail], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    options = [f"--{protocol}=localhost:{server.port}" for protocol, server in mail.items()]
    started = Started(tmp_path_factory.mktemp("auth"), ports.take(), users, *options)
    yield started
    started.running.stop()


@pytest.fixture(scope="module")
def listening(ports: Ports) -> dict[str, int]:
    return ports.take_all(*PROTOCOLS)


@pytest.fixture(scope="module")
def proxy(
    service: Started, listening: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    servers = [
        {"name": name, "protocol": name, "listen": [{"address": "127.0.0.1", "port": port}]}
        for name, port in listening.items()
    ]
    directives = {
        "authHttp": f"http://127.0.0.1:{service.port}/auth",
        "authHttpHeader": [{"name": "X-Auth-Key", "value": KEY}],
        "imapAuth": ["plain", "login", "cram-md5"],
        "pop3Auth": ["plain", "apop", "cram-md5"],
        "smtpAuth": ["plain", "login", "cram-md5"],
        "serverName": "mail.example.com",
    }
    running = proxies.start(tmp_path_factory.mktemp("proxy"), manifest(servers, directives))
    yield running
    running.stop()


# -- behind the proxy


@pytest.mark.parametrize("user", PASSWORDS)
def test_imap_login_with_the_right_password(
    proxy: Proxy, listening: dict[str, int], mail: dict[str, TinyMail], user: str
) -> None:
    client = imaplib.IMAP4("127.0.0.1", listening["imap"], timeout=20)
    assert client.login(user, PASSWORDS[user])[0] == "OK"
    client.shutdown()
    assert PASSWORDS[user] in "\n".join(mail["imap"].lines)
    assert proxy.event("session", user=user, protocol="imap")["result"] == "success"


def test_imap_cram_md5_needs_the_password_in_the_file(
    proxy: Proxy, listening: dict[str, int], mail: dict[str, TinyMail]
) -> None:
    client = imaplib.IMAP4("127.0.0.1", listening["imap"], timeout=20)
    assert client.login_cram_md5("bob", PASSWORDS["bob"])[0] == "OK"
    client.shutdown()
    client = imaplib.IMAP4("127.0.0.1", listening["imap"], timeout=20)
    with pytest.raises(imaplib.IMAP4.error, match=r"\[AUTHENTICATIONFAILED\] Invalid"):
        client.login_cram_md5("alice", PASSWORDS["alice"])
    client.shutdown()


def test_pop3_logins_by_password_and_apop(proxy: Proxy, listening: dict[str, int]) -> None:
    client = poplib.POP3("127.0.0.1", listening["pop3"], timeout=20)
    client.user("alice")
    assert client.pass_(PASSWORDS["alice"]).startswith(b"+OK")
    client.close()
    client = poplib.POP3("127.0.0.1", listening["pop3"], timeout=20)
    assert client.apop("bob", PASSWORDS["bob"]).startswith(b"+OK")
    client.close()


@pytest.mark.parametrize("method", ["auth_plain", "auth_login", "auth_cram_md5"])
def test_smtp_login_by_each_method(proxy: Proxy, listening: dict[str, int], method: str) -> None:
    client = smtplib.SMTP("127.0.0.1", listening["smtp"], timeout=20)
    client.ehlo("client.example.net")
    client.user, client.password = "bob", PASSWORDS["bob"]
    mechanism = method.removeprefix("auth_").replace("_", "-").upper()
    code, _ = client.auth(mechanism, getattr(client, method))
    assert code == 235
    client.close()


def test_denied_login_keeps_connection_and_has_code_of_protocol(
    proxy: Proxy, listening: dict[str, int]
) -> None:
    client = imaplib.IMAP4("127.0.0.1", listening["imap"], timeout=20)
    with pytest.raises(imaplib.IMAP4.error, match=r"\[AUTHENTICATIONFAILED\] Invalid user name or password"):
        client.login("alice", "guessed-4711")
    assert client.login("alice", PASSWORDS["alice"])[0] == "OK"
    client.shutdown()
    sender = smtplib.SMTP("127.0.0.1", listening["smtp"], timeout=20)
    with pytest.raises(smtplib.SMTPAuthenticationError) as denied:
        sender.login("nobody", "guessed-4711")
    assert (denied.value.smtp_code, denied.value.smtp_error) == (535, b"5.7.8 Invalid user name or password")
    sender.close()


def test_wrong_key_is_reported_in_proxy_log(service: Started, ports: Ports, tmp_path: Path) -> None:
    port = ports.take()
    listen = [{"address": "127.0.0.1", "port": port}]
    mail = {"authHttp": f"http://127.0.0.1:{service.port}/auth"}
    running = proxies.start(
        tmp_path, manifest([{"name": "imap", "protocol": "imap", "listen": listen}], mail)
    )
    try:
        client = imaplib.IMAP4("127.0.0.1", port, timeout=20)
        with pytest.raises(imaplib.IMAP4.error):
            client.login("alice", PASSWORDS["alice"])
        client.shutdown()
        eventually(
            lambda: "HTTP status 403: the service refuses the proxy" in running.running.output_text(),
            "the reason",
        )
    finally:
        running.stop()


# -- responses


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_responses_have_address_and_port_of_protocol(
    service: Started, mail: dict[str, TinyMail], protocol: str
) -> None:
    response = service.send_request(**login(protocol, "alice", PASSWORDS["alice"]))
    assert response["Auth-Status"] == "OK"
    assert response["Auth-Server"] in {"127.0.0.1", "::1"}
    assert response["Auth-Port"] == str(mail[protocol].port)
    assert "Auth-Pass" not in response


def test_last_denial_of_connection_has_no_auth_wait(service: Started) -> None:
    parameters = login("pop3", "alice", "guessed-4711")
    assert service.send_request(**parameters)["Auth-Wait"] == "3"
    assert "Auth-Wait" not in service.send_request(**{**parameters, "Auth_Login_Attempt": "5"})


@pytest.mark.parametrize("method", ["none", "external", "nonsense", ""])
def test_other_methods_are_denied(service: Started, method: str) -> None:
    response = service.send_request(**{**login("smtp", "alice", PASSWORDS["alice"]), "Auth_Method": method})
    assert (response["Auth-Status"], response["Auth-Error-Code"]) == ("Authentication required", "530 5.7.0")


def test_mail_servers_can_be_set_per_user(users: str, ports: Ports, tmp_path: Path) -> None:
    own = users.replace(
        "bob:{PLAIN}builder-7Qx", "bob:{PLAIN}builder-7Qx:imap=192.0.2.9:1143 pop3=[2001:db8::9]:1110"
    )
    started = Started(tmp_path, ports.take(), own)
    try:
        response = started.send_request(**login("imap", "bob", PASSWORDS["bob"]))
        assert (response["Auth-Server"], response["Auth-Port"]) == ("192.0.2.9", "1143")
        response = started.send_request(**login("pop3", "bob", PASSWORDS["bob"]))
        assert (response["Auth-Server"], response["Auth-Port"]) == ("2001:db8::9", "1110")
        response = started.send_request(**login("smtp", "bob", PASSWORDS["bob"]))
        assert response["Auth-Error-Code"] == "454 4.7.0"
        assert started.events("login")[-1]["reason"] == "no mail server for smtp"
    finally:
        started.running.stop()


def test_unknown_users_cause_same_hashing_as_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check costs exactly one hash with the same parameters."""
    verifier = AUTH.Verifier()
    costs = []
    matches = AUTH.Hashed.matches

    def counted(self: Any, password: bytes) -> bool:
        costs.append((self.n, self.r, self.p))
        return bool(matches(self, password))

    monkeypatch.setattr(AUTH.Hashed, "matches", counted)
    hashed = AUTH.User(AUTH.hash_password(b"right"), None, {})
    plain = AUTH.User(None, b"right", {})
    verdicts = [
        verifier.by_password(b"name", user, password)
        for user in (None, hashed, plain)
        for password in (b"wrong", b"right")
    ]
    assert verdicts == [False, False, False, True, False, True]
    assert costs == [AUTH.SCRYPT] * 6


# -- the users file


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hunter2secret", "no colon"),
        (":{PLAIN}hunter2secret", "the user name is empty"),
        ("alice:hunter2secret", "must begin with {SCRYPT} or {PLAIN}"),
        ("alice:{PLAIN}", "must begin with {SCRYPT} or {PLAIN}"),
        ("alice:{PLAIN}hunter:2secret", "a password cannot hold a colon"),
        ("alice:{SCRYPT}hunter2secret", "the hash is not n,r,p,salt,key"),
        ("alice:{SCRYPT}16384,8,5,hunter2secret,=", "the hash is not n,r,p,salt,key"),
        (
            "alice:{SCRYPT}16383,8,5,c2FsdHNhbHQ=,aGFzaGhhc2hoYXNoaGFzaA==",
            "n of the hash must be a power of 2",
        ),
        ("alice:{SCRYPT}1048576,8,5,c2FsdHNhbHQ=,aGFzaGhhc2hoYXNoaGFzaA==", "more than 64 MiB"),
        ("alice:{SCRYPT}16384,8,5,c2FsdA==,aGFzaGhhc2hoYXNoaGFzaA==", "a salt of at least 8"),
        ("alice:{PLAIN}hunter2secret:imap=host", "a mail server must be HOST:PORT"),
        ("alice:{PLAIN}hunter2secret:imap=host:70000", "a mail server must be HOST:PORT"),
        ("first:{PLAIN}hunter2secret", "this user has a line already"),
    ],
)
def test_invalid_line_is_reported_without_secret(line: str, problem: str) -> None:
    data = f"# users\nfirst:{{PLAIN}}fine\n\n{line}\n".encode()
    with pytest.raises(AUTH.InvalidUsersError) as wrong:
        AUTH.parse_users(data)
    assert len(wrong.value.problems) == 1
    assert wrong.value.problems[0].startswith("line 4: ")
    assert problem in wrong.value.problems[0]
    assert "hunter" not in str(wrong.value)
    assert "2secret" not in str(wrong.value)


def test_all_invalid_lines_and_bytes_are_reported() -> None:
    with pytest.raises(AUTH.InvalidUsersError) as wrong:
        AUTH.parse_users(b"a:b\nc:{PLAIN}d\ne:f\n")
    assert [problem.partition(":")[0] for problem in wrong.value.problems] == ["line 1", "line 3"]
    with pytest.raises(AUTH.InvalidUsersError, match="line 2: not UTF-8"):
        AUTH.parse_users(b"a:{PLAIN}b\nc:{PLAIN}\xff\n")


@pytest.mark.parametrize("first", ["alice:hunter2secret\n", None])
def test_invalid_users_file_causes_temporary_errors_until_corrected(
    users: str, ports: Ports, tmp_path: Path, first: str | None
) -> None:
    started = Started(tmp_path, ports.take(), first, "--imap=127.0.0.1:143")
    try:
        parameters = login("imap", "alice", PASSWORDS["alice"])
        response = started.send_request(**parameters)
        assert response["Auth-Status"] == "[UNAVAILABLE] Temporary server problem, try again later"
        assert response["Auth-Wait"] == "3"
        smtp = started.send_request(**{**parameters, "Auth_Protocol": "smtp"})
        assert smtp["Auth-Error-Code"] == "454 4.7.0"
        [invalid] = started.events("users_invalid")
        reason = "line 1: the password must begin with" if first else "No such file or directory"
        assert invalid["problems"][0].startswith(reason)
        assert started.events("login")[0]["reason"] == "there is no valid users file"
        started.write(users)
        assert started.send_request(**parameters)["Auth-Status"] == "OK"
        assert "hunter2secret" not in started.running.output_text()
    finally:
        started.running.stop()


def test_users_are_kept_when_file_becomes_invalid(users: str, ports: Ports, tmp_path: Path) -> None:
    started = Started(tmp_path, ports.take(), users, "--imap=127.0.0.1:143")
    try:
        started.write("alice:{PLAIN}new-secret\nbroken\n")
        assert started.send_request(**login("imap", "alice", PASSWORDS["alice"]))["Auth-Status"] == "OK"
        connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=20)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"users: line 2: no colon between user name and password\n"
        connection.close()
        started.write("alice:{PLAIN}new-secret\n")
        assert started.send_request(**login("imap", "alice", "new-secret"))["Auth-Status"] == "OK"
        assert started.send_request(**login("imap", "bob", PASSWORDS["bob"]))["Auth-Status"].startswith(
            "[AUTH"
        )
    finally:
        started.running.stop()


def test_commands_hash_and_check(tmp_path: Path) -> None:
    hashed = run_program([sys.executable, str(PROGRAM), "hash"], stdin="se:cret\n").strip()
    file = tmp_path / "users.txt"
    file.write_text(f"alice:{hashed}\n")
    assert run_program([sys.executable, str(PROGRAM), "check", str(file)]) == "1 users\n"
    assert AUTH.parse_users(file.read_bytes())[b"alice"].hashed.matches(b"se:cret")
    file.write_text("alice:secret\n")
    said = run_program([sys.executable, str(PROGRAM), "check", str(file)])
    assert said.startswith(f"{file}: line 1: the password must begin with")


# -- HTTP


def _raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /auth HTTP/1.0\r\nAuth-Protocol: imap\r\n\r\n", b"403"),
        (b"GET /other HTTP/1.0\r\n\r\n", b"404"),
        (b"POST /auth HTTP/1.0\r\n\r\n", b"405"),
        (b"GET /auth HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /", b"413"),
        (b"GET /auth HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"413"),
        (b"GET /auth HTTP/1.1\r\nAuth-User: a\r\nAuth-User: b\r\n\r\n", b"400"),
        (b"GET /auth HTTP/1.1\r\nAuth-User : a\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /auth HTTP/1.1\r\nX: " + b"x" * 40000 + b"\r\n\r\n", b"431"),
    ],
)
def test_rejected_requests_close_connection(service: Started, request_bytes: bytes, status: bytes) -> None:
    response = _raw(service.port, request_bytes)
    assert response.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nConnection: close\r\n" in response
    assert b"Auth-Status" not in response


def test_connections_stay_open_between_requests(service: Started) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    for _ in range(3):
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"ok\n")
    connection.close()


def test_connections_above_the_limit_get_a_temporary_error(
    monkeypatch: pytest.MonkeyPatch, ports: Ports, tmp_path: Path
) -> None:
    script = tmp_path / "limited.py"
    script.write_text(PROGRAM.read_text().replace("MAX_CONNECTIONS = 1024", "MAX_CONNECTIONS = 2"))
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", script)
    started = Started(tmp_path, ports.take(), "")
    try:
        kept = [socket.create_connection(("127.0.0.1", started.port), timeout=20) for _ in range(2)]

        def refused() -> bytes:
            with socket.create_connection(("127.0.0.1", started.port), timeout=0.5) as client:
                try:
                    return client.recv(4096)
                except TimeoutError:
                    return b""

        response = eventually(refused, "a refusal")
        assert response.startswith(b"HTTP/1.1 503")
        assert b"\r\nAuth-Error-Code: 454 4.7.0\r\n" in response
        for one in kept:
            one.close()
    finally:
        started.running.stop()


def test_sigterm_completes_current_requests_and_exits_with_0(
    users: str, ports: Ports, tmp_path: Path
) -> None:
    started = Started(tmp_path, ports.take(), users, "--imap=127.0.0.1:143")
    idle = http.client.HTTPConnection("127.0.0.1", started.port, timeout=20)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    busy = http.client.HTTPConnection("127.0.0.1", started.port, timeout=20)
    headers = {
        name.replace("_", "-"): value for name, value in login("imap", "alice", PASSWORDS["alice"]).items()
    }
    busy.request("GET", "/auth", headers={"X-Auth-Key": KEY, **headers})
    started.running.process.send_signal(signal.SIGTERM)
    response = busy.getresponse()
    assert response.getheader("Auth-Status") == "OK"
    assert started.running.wait_for_exit(20) == 0
    assert started.events("stopped")
    idle.close()
    busy.close()


def test_no_secret_is_logged(service: Started, users: str) -> None:
    service.send_request(**login("imap", "hunter2-typed-as-name", "hunter2-secret"))
    service.send_request(**login("imap", "alice", "hunter2-secret"))
    said = service.running.output_text()
    hashed = users.partition("}")[2].partition("\n")[0]
    for secret in (*PASSWORDS.values(), "hunter2", KEY, hashed, "wonder%20land%25"):
        assert secret not in said
    denied = service.events("login")[-1]
    assert (denied["user"], denied["result"], denied["client"]) == ("alice", "denied", "192.0.2.42")
