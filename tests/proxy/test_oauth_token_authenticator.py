# SPDX-License-Identifier: Apache-2.0
"""Logins with tokens that the proxy validates (``auth_mode jwt``), over sockets in the three protocols."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.enums import TokenFinding
from mailproxy.net.listen_plan import plan_sockets
from mailproxy.oauth import jwks_cache, token_authenticator
from mailproxy_config.model import (
    AuthHttp,
    AuthHttpHeader,
    AuthMethod,
    AuthMode,
    ListenConfig,
    LogLevel,
    Protocol,
    ServerConfig,
)
from mailproxy_config.oauth_issuer import OAuthIssuer, TokenType
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.token_issuer import Issuer, JwksServer, jwks_server
from support.token_issuer import http_response as jwks_response

ISSUER: Final = Issuer()
KEYS: Final = jwks_response(ISSUER.jwks())
GRANTED: Final = http_response(GRANT)
TOKENS: Final = frozenset({AuthMethod.PLAIN, AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})
METHODS: Final = {Protocol.IMAP: "imap_auth", Protocol.POP3: "pop3_auth", Protocol.SMTP: "smtp_auth"}
COMMAND: Final = {Protocol.IMAP: b"a AUTHENTICATE ", Protocol.POP3: b"AUTH ", Protocol.SMTP: b"AUTH "}
PREFIX: Final = {Protocol.IMAP: b"+ ", Protocol.POP3: b"+ ", Protocol.SMTP: b"334 "}
REFUSED: Final = {
    Protocol.IMAP: b"a NO Invalid token\r\n",
    Protocol.POP3: b"-ERR Invalid token\r\n",
    Protocol.SMTP: b"535 5.7.0 Invalid token\r\n",
}
NO_TOKEN: Final = {protocol: reply.replace(b"Invalid", b"No") for protocol, reply in REFUSED.items()}
OUTAGE: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
ERROR: Final = {
    "status": "invalid_token",
    "openid-configuration": "https://id.example/realms/mail/.well-known/openid-configuration",
}


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_authenticator, "REFUSAL_WAIT", 0.01)


def builder(protocol: Protocol, *issuers: OAuthIssuer, **directives: Any) -> Callable[..., ServerConfig]:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        known = {
            "auth_http": auth,
            "listen": (listen,),
            METHODS[protocol]: TOKENS,
            "auth_mode": AuthMode.JWT,
            "oauth_issuer": issuers,
        }
        return server(protocol, **(known | directives))

    return build


def xoauth2(token: bytes, user: bytes = b"") -> bytes:
    return b"XOAUTH2 " + b64encode(b"user=" + user + b"\1auth=Bearer " + token + b"\1\1") + b"\r\n"


def oauthbearer(token: bytes, user: bytes = b"bob@example.org") -> bytes:
    message = b"n,a=" + user + b",\1host=mail.example.org\1port=143\1auth=Bearer " + token + b"\1\1"
    return b"OAUTHBEARER " + b64encode(message) + b"\r\n"


async def greeted(w: LoopbackWorker, protocol: Protocol) -> Peer:
    client = await w.client()
    await client.read_line()
    if protocol is Protocol.SMTP:
        await client.send(b"EHLO client\r\n")
        while not (await client.read_line()).startswith(b"250 "):
            pass
    return client


def play(
    protocol: Protocol,
    test: Callable[[LoopbackWorker, JwksServer], Any],
    *issuers: Issuer,
    keys: tuple[Any, ...] = (KEYS,),
    responses: tuple[Any, ...] = (GRANTED,),
    fields: dict[str, Any] | None = None,
    **directives: Any,
) -> None:
    with jwks_server(*keys) as keys_at:
        configured = [one.config(keys_at.uri, **(fields or {})) for one in issuers or (ISSUER,)]

        async def bounded() -> None:
            async with loopback_worker(
                builder(protocol, *configured, **directives), *responses, drain=0.1
            ) as w:
                await test(w, keys_at)

        run(bounded)


def headers(request: bytes) -> dict[str, str]:
    lines = request.decode().split("\r\n")[1:-2]
    return dict(line.split(": ", 1) for line in lines)


async def refused(w: LoopbackWorker, client: Peer, protocol: Protocol, line: bytes) -> dict[str, str]:
    """Send a token, acknowledge the challenge with the error, and return the error."""
    await client.send(COMMAND[protocol] + line)
    challenge = await client.read_line()
    assert challenge.startswith(PREFIX[protocol]), challenge
    await client.send(b"AQ==\r\n" if line.startswith(b"OAUTHBEARER") else b"\r\n")
    assert await client.read_line() == REFUSED[protocol]
    found: dict[str, str] = json.loads(b64decode(challenge[len(PREFIX[protocol]) :]))
    return found


async def upstream_user(w: LoopbackWorker, protocol: Protocol) -> bytes:
    """Let the proxy log in, and return the user name and password that it sends."""
    upstream = await w.upstream.accept()
    if protocol is Protocol.IMAP:
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        user = await upstream.exchange(b"+ go\r\n")
        password = await upstream.exchange(b"+ go\r\n")
        await upstream.send(b"a OK done\r\n")
        return user.split()[0] + b" " + password.strip()
    if protocol is Protocol.POP3:
        await upstream.send(b"+OK ready\r\n")
        user = await upstream.read_line()
        password = await upstream.exchange(b"+OK\r\n")
        await upstream.send(b"+OK done\r\n")
        return user.split()[1] + b" " + password.split()[1]
    await upstream.send(b"220 ready\r\n")
    await upstream.read_line()
    await upstream.exchange(b"250-x\r\n250 XCLIENT\r\n")
    return b""


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("method", [xoauth2, oauthbearer])
@pytest.mark.parametrize("protocol", Protocol)
def test_valid_token_logs_in(protocol: Protocol, method: Callable[[bytes], bytes], algorithm: str) -> None:
    token = ISSUER.token(algorithm)

    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, protocol)
        await client.send(COMMAND[protocol] + method(token))
        found = await upstream_user(w, protocol)
        [request] = w.auth.requests
        sent = headers(request)
        assert sent["Auth-User"] == "bob@example.org"
        assert sent["Auth-Pass"] == token.decode()
        assert sent["Auth-Method"] == method(b"").split()[0].decode().lower()
        assert sent["Auth-Token-Issuer"] == ISSUER.name
        if protocol is not Protocol.SMTP:
            assert found == b"bob@example.org " + token
            assert b"done" in await client.read_line()
        assert w.value("mailproxy_oauth_validations_total", "valid") == 1
        assert w.value("mailproxy_oauth_jwks_fetches_total", "ok") == 1
        client.close()
        log = w.read_log()
        assert token.decode() not in log
        assert token.decode().split(".")[2] not in log

    play(protocol, test, proxy_smtp_auth=False, proxy_smtp_guard=False, error_log=LogLevel.DEBUG)


@pytest.mark.parametrize("protocol", Protocol)
def test_refused_token_is_challenge_with_error_and_connection_stays(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, protocol)
        for method in (xoauth2, oauthbearer):
            found = await refused(w, client, protocol, method(ISSUER.token(exp=1)))
            assert found == {**ERROR, "scope": "mail"}
        assert w.auth.requests == []
        await client.send(COMMAND[protocol] + xoauth2(ISSUER.token(scope="mail")))
        await upstream_user(w, protocol)
        assert headers(w.auth.requests[0])["Auth-Login-Attempt"] == "3"
        assert w.value("mailproxy_oauth_validations_total", "expired") == 2
        assert w.value("mailproxy_logins_total", protocol, "xoauth2", "denied") == 1
        assert w.value("mailproxy_logins_total", protocol, "oauthbearer", "denied") == 1
        log = w.read_log()
        assert "token_refused" in log
        assert "reason=expired" in log
        client.close()

    play(protocol, test, fields={"scope": "mail"}, proxy_smtp_guard=False, error_log=LogLevel.INFO)


def test_connection_is_closed_after_max_errors_refusals() -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        for _ in range(3):
            await refused(w, client, Protocol.IMAP, xoauth2(b"opaque"))
        assert await client.read_to_eof() == b""
        assert w.value("mailproxy_connections_closed_total", "imap", "imap", "auth_rejected") == 1

    play(Protocol.IMAP, test, max_errors=3)


OTHER: Final = Issuer("https://other.example")
BROKEN: Final = [
    (b"opaque", "malformed"),
    (ISSUER.token(header={"alg": "none"}).rpartition(b".")[0] + b".", "algorithm"),
    (ISSUER.token(header={"alg": "HS256"}), "algorithm"),
    (ISSUER.token("ES256", {"kid": "rsa"}), "algorithm"),
    (OTHER.token(iss=ISSUER.name), "signature"),
    (OTHER.token(), "issuer"),
    (ISSUER.token(iss=ISSUER.name + "/"), "issuer"),
    (ISSUER.token(header={"kid": "unknown"}), "unknown_key"),
    (ISSUER.token(aud="other"), "audience"),
    (ISSUER.token(exp=1), "expired"),
    (ISSUER.token(nbf=9_999_999_999), "not_yet_valid"),
    (ISSUER.token(header={"crit": ["exp"]}), "malformed"),
    (ISSUER.token(email_verified=False), "unverified"),
    (ISSUER.token(email=None), "identity"),
    (ISSUER.token(email="bob@example.com"), "domain"),
    (ISSUER.token(email="ceo@example.org"), "user"),
    (ISSUER.token(azp="other"), "client"),
    (ISSUER.token(scope=None), "scope"),
    (ISSUER.token(typ="ID"), "type"),
]


@pytest.mark.parametrize(("token", "result"), BROKEN)
def test_broken_token_is_refused_and_counted(token: bytes, result: str) -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await refused(w, client, Protocol.IMAP, xoauth2(token, b"bob@example.org"))
        assert w.value("mailproxy_oauth_validations_total", result) == 1
        assert w.auth.requests == []
        client.close()

    fields = {
        "token_type": TokenType.KEYCLOAK,
        "identity_domains": ("example.org",),
        "allowed_clients": ("thunderbird",),
        "scope": "openid",
    }
    play(Protocol.IMAP, test, fields=fields)


def test_every_refusal_has_a_broken_token() -> None:
    tried = {result for _, result in BROKEN} | {"valid", "unavailable"}
    assert tried == {str(result) for result in TokenFinding}


# ---- discovery


@pytest.mark.parametrize(
    ("mechanism", "message"),
    [
        (b"OAUTHBEARER", b"n,a=bob,\1auth=Bearer \1\1"),
        (b"OAUTHBEARER", b"n,a=bob,\1host=h\1port=143\1auth=\1\1"),
        (b"OAUTHBEARER", b"n,,\1auth=Bearer\1\1"),
        (b"XOAUTH2", b"user=bob\1auth=Bearer \1\1"),
        (b"XOAUTH2", b"user=\1auth=\1\1"),
    ],
)
@pytest.mark.parametrize("protocol", Protocol)
def test_empty_token_is_answered_and_no_login(protocol: Protocol, mechanism: bytes, message: bytes) -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, protocol)
        for _ in range(2):
            challenge = await client.exchange(
                COMMAND[protocol] + mechanism + b" " + b64encode(message) + b"\r\n"
            )
            assert json.loads(b64decode(challenge[len(PREFIX[protocol]) :])) == ERROR
            acknowledged = b"AQ==\r\n" if mechanism == b"OAUTHBEARER" else b"\r\n"
            assert await client.exchange(acknowledged) == NO_TOKEN[protocol]
        await client.send(COMMAND[protocol] + xoauth2(ISSUER.token()))
        await upstream_user(w, protocol)
        assert headers(w.auth.requests[0])["Auth-Login-Attempt"] == "1"
        logins = w.metrics.snapshot()["series"]["mailproxy_logins_total"]
        assert sum(value for labels, value in logins if labels[2] == "denied") == 0  # type: ignore[misc]
        client.close()

    play(protocol, test, proxy_smtp_guard=False)


def test_client_may_cancel_discovery() -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.exchange(b"a AUTHENTICATE XOAUTH2 " + b64encode(b"user=\1auth=Bearer \1\1") + b"\r\n")
        assert await client.exchange(b"*\r\n") == b"a BAD invalid command\r\n"
        client.close()

    play(Protocol.IMAP, test)


def test_empty_token_of_oauthbearer_is_invalid_command_in_mode_http() -> None:
    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        message = b64encode(b"n,a=bob,\1auth=Bearer \1\1")
        assert (
            await client.exchange(b"a AUTHENTICATE OAUTHBEARER " + message + b"\r\n")
            == b"a BAD invalid command\r\n"
        )
        assert keys.requests == []
        client.close()

    play(Protocol.IMAP, test, auth_mode=AuthMode.HTTP)


# ---- the authentication service


@pytest.mark.parametrize("protocol", Protocol)
def test_password_login_is_sent_to_the_service(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, protocol)
        await client.send(COMMAND[protocol] + b"PLAIN " + b64encode(b"\0bob\0secret") + b"\r\n")
        await upstream_user(w, protocol)
        sent = headers(w.auth.requests[0])
        assert (sent["Auth-User"], sent["Auth-Pass"], sent["Auth-Method"]) == ("bob", "secret", "plain")
        assert "Auth-Token-Issuer" not in sent
        client.close()

    play(protocol, test, proxy_smtp_guard=False)


def test_service_may_deny_a_valid_token() -> None:
    denied = http_response("Auth-Status: No mailbox\r\nAuth-Error-SASL: e30=\r\n")

    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        assert await client.exchange(b"a AUTHENTICATE " + xoauth2(ISSUER.token())) == b"+ e30=\r\n"
        assert await client.exchange(b"\r\n") == b"a NO No mailbox\r\n"

    play(Protocol.IMAP, test, responses=(denied,))


def test_service_may_replace_user_and_password() -> None:
    granted = http_response(GRANT + "Auth-User: box7\r\nAuth-Pass: master\r\n")

    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        assert await upstream_user(w, Protocol.IMAP) == b"box7 master"
        client.close()

    play(Protocol.IMAP, test, responses=(granted,))


def test_deferred_login_is_validated_once() -> None:
    deferred = http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\nAuth-User: bob2\r\nAuth-Pass: other\r\n")

    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        assert await upstream_user(w, Protocol.IMAP) == b"bob2 other"
        assert [headers(one)["Auth-Token-Issuer"] for one in w.auth.requests] == [ISSUER.name] * 2
        assert w.value("mailproxy_oauth_validations_total", "valid") == 1
        client.close()

    play(Protocol.IMAP, test, responses=(deferred, GRANTED))


def test_variables_in_headers_are_replaced_with_tokens_too() -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        await upstream_user(w, Protocol.IMAP)
        sent = headers(w.auth.requests[0])
        assert (sent["X-Protocol"], sent["Auth-Token-Issuer"]) == ("imap", ISSUER.name)
        client.close()

    header = AuthHttpHeader(name="X-Protocol", value="$protocol")
    play(Protocol.IMAP, test, auth_http_variables=True, auth_http_header=(header,))


# ---- several issuers


def test_issuer_may_log_in_its_own_domains_only() -> None:
    one = ISSUER.config("", identity_domains=("example.org",))
    other = OTHER.config("", identity_domains=("other.example",))
    with jwks_server(KEYS) as keys, jwks_server(jwks_response(OTHER.jwks())) as other_keys:
        build = builder(
            Protocol.IMAP, replace(one, jwks_uri=keys.uri), replace(other, jwks_uri=other_keys.uri)
        )

        async def test() -> None:
            async with loopback_worker(build, GRANTED) as w:
                client = await greeted(w, Protocol.IMAP)
                error = await refused(w, client, Protocol.IMAP, xoauth2(OTHER.token()))
                assert error["openid-configuration"].startswith("https://other.example/")
                assert w.value("mailproxy_oauth_validations_total", "domain") == 1
                # A key of one issuer does not verify a token that names the other one.
                await refused(w, client, Protocol.IMAP, xoauth2(OTHER.token(iss=ISSUER.name)))
                assert w.value("mailproxy_oauth_validations_total", "signature") == 1
                await client.send(b"a AUTHENTICATE " + xoauth2(OTHER.token(email="eve@other.example")))
                assert (await upstream_user(w, Protocol.IMAP)).startswith(b"eve@other.example ")
                assert headers(w.auth.requests[0])["Auth-Token-Issuer"] == OTHER.name
                client.close()

        run(test)


# ---- keys


@pytest.mark.parametrize("protocol", Protocol)
def test_keys_that_cannot_be_fetched_are_an_outage(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        for _ in range(2):
            client = await greeted(w, protocol)
            await client.send(COMMAND[protocol] + xoauth2(ISSUER.token()))
            assert await client.read_line() == OUTAGE[protocol]
        assert len(keys.requests) == 1
        assert w.value("mailproxy_oauth_validations_total", "unavailable") == 2
        assert w.value("mailproxy_logins_total", protocol, "xoauth2", "unavailable") == 2
        assert w.value("mailproxy_logins_total", protocol, "xoauth2", "denied") == 0
        log = w.read_log()
        assert "authorization_failed" in log
        assert "the keys of the issuer cannot be fetched" in log

    play(protocol, test, keys=(jwks_response(b"", "503 Unavailable"),))


def test_login_waits_for_the_first_fetch_of_keys() -> None:
    def slowly(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.settimeout(0.3)
            with suppress(TimeoutError):
                sock.recv(1)
            sock.sendall(KEYS)

    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        await upstream_user(w, Protocol.IMAP)
        assert len(keys.requests) == 1
        client.close()

    play(Protocol.IMAP, test, keys=(slowly,))


def test_client_that_leaves_while_keys_are_fetched_is_forgotten() -> None:
    def silence(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.recv(1)

    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        await asyncio.to_thread(keys.wait_for_requests, 1)
        await asyncio.sleep(0.05)
        client.reset()
        await w.wait_for_sessions()
        [cache] = w.app.authenticators.jwks_caches.values()
        assert not cache._waiting

    play(Protocol.IMAP, test, keys=(silence,))


def test_rotated_key_is_fetched_for_the_first_token_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_cache, "RETRY_SECONDS", 0.0)

    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        for algorithm in ("RS256", "ES256"):
            client = await greeted(w, Protocol.IMAP)
            await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token(algorithm)))
            await upstream_user(w, Protocol.IMAP)
            client.close()
        client = await greeted(w, Protocol.IMAP)
        await refused(w, client, Protocol.IMAP, xoauth2(ISSUER.token("RS256")))
        assert w.value("mailproxy_oauth_validations_total", "unknown_key") == 1
        assert len(keys.requests) == 3
        client.close()

    old, new = jwks_response(ISSUER.jwks("RS256")), jwks_response(ISSUER.jwks("ES256"))
    play(Protocol.IMAP, test, keys=(old, new))


def test_flood_of_unknown_keys_causes_no_request() -> None:
    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        for number in range(20):
            token = ISSUER.token(header={"kid": f"k{number}"})
            await refused(w, client, Protocol.IMAP, xoauth2(token))
        assert len(keys.requests) == 1
        assert w.value("mailproxy_oauth_validations_total", "unknown_key") == 20
        client.close()

    play(Protocol.IMAP, test, max_errors=100)


def test_known_key_is_used_while_keys_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_cache, "RETRY_SECONDS", 0.0)

    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        await upstream_user(w, Protocol.IMAP)
        client.close()
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token(header={"kid": "new"})))
        assert await client.read_line() == OUTAGE[Protocol.IMAP]
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
        await upstream_user(w, Protocol.IMAP)
        client.close()

    play(Protocol.IMAP, test, keys=(KEYS, jwks_response(b"", "503 Unavailable")))


# ---- libraries


def test_libraries_are_imported_only_with_the_mode() -> None:
    code = (
        "import sys, mailproxy.app, mailproxy.worker\n"
        "print(sorted({'jwt', 'cryptography', 'http.client'} & sys.modules.keys()))\n"
        "import mailproxy.oauth.token_authenticator\n"
        "print(sorted({'jwt', 'cryptography'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["[]", "['cryptography', 'jwt']"]


# ---- reloads


async def reload(w: LoopbackWorker, server: ServerConfig) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    w.port = sock.getsockname()[1]
    listen = replace(w.config.servers[0].listen[0], port=w.port)
    config = replace(w.config, servers=(replace(server, listen=(listen,)),))
    sockets = {planned.key: [sock] for planned in plan_sockets(config, {})}
    await w.app.apply(config, sockets, names={}, ticket_keys={})


def test_keys_survive_a_reload() -> None:
    async def test(w: LoopbackWorker, keys: JwksServer) -> None:
        server = w.config.servers[0]
        for changes in (
            {},
            {"timeout": 30.0},
            {"oauth_issuer": (replace(server.oauth_issuer[0], leeway=5),)},
        ):
            await reload(w, replace(server, **changes))
            client = await greeted(w, Protocol.IMAP)
            await client.send(b"a AUTHENTICATE " + xoauth2(ISSUER.token()))
            await upstream_user(w, Protocol.IMAP)
            client.close()
        assert len(keys.requests) == 1

    play(Protocol.IMAP, test)


def test_reload_without_issuers_ends_the_fetches() -> None:
    async def test(w: LoopbackWorker, _: JwksServer) -> None:
        [cache] = w.app.authenticators.jwks_caches.values()
        await reload(w, replace(w.config.servers[0], auth_mode=AuthMode.HTTP))
        assert w.app.authenticators.jwks_caches == {}
        assert not cache.wait(print)

    play(Protocol.IMAP, test)
