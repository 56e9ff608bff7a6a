#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An authentication service for MailProxy and for nginx's mail module, in one file, without dependencies.

    auth.py serve --users users.txt --imap 10.0.0.5:143    answers auth_http requests
    auth.py check users.txt                                 prints every problem of a users file
    auth.py hash                                            asks for a password, prints its hash

One user per line, fields separated by colons; empty lines and lines that start with # are ignored:

    alice:{SCRYPT}16384,8,5,c2FsdA==,aGFzaA==
    bob:{PLAIN}builder
    carol:{SCRYPT}16384,8,5,c2FsdA==,aGFzaA==:imap=10.0.0.9:143 smtp=[2001:db8::9]:25

The third field overrides the mail servers of the command line for one user.  A hashed password is
enough for PLAIN, LOGIN and POP3's USER/PASS.  CRAM-MD5 and APOP need the password itself, as {PLAIN};
it cannot hold a colon then.

The file is read again within a second when it changes.  Until it has been valid once, every login gets
a temporary error.  When a valid file becomes invalid, the users stay as they were.  Either way the log
has every line that is wrong, and what is wrong with it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import functools
import getpass
import hashlib
import hmac
import json
import os
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

MAX_REQUEST = 32 * 1024
"""Bytes of a request; client certificates in Auth-SSL-Cert are the longest header."""
MAX_CONNECTIONS = 1024
IDLE_TIMEOUT = 75.0
"""Seconds that a connection may be silent; longer than the 30 s after which MailProxy closes idle ones."""
DRAIN_TIMEOUT = 10.0
"""Seconds that requests have to end after the listening socket was closed."""
SCRYPT = (16384, 8, 5)
"""n, r, p of new hashes: 16 MiB of memory, about 0.2 s of one processor."""
MAX_SCRYPT_MEMORY = 64 * 1024 * 1024
HASHING_THREADS = min(4, os.cpu_count() or 1)
VERIFIED_SECONDS = 300.0
"""Seconds for which a password that was right is not hashed again."""
MAX_VERIFIED = 10_000
DENIED_WAIT = 3
"""Seconds before a client learns that its password was wrong; it may then try again."""
MAX_ATTEMPTS = 5
"""Failed logins of one connection, after which it is closed."""
LOOKUP_TIMEOUT = 5.0
PROTOCOLS = ("imap", "pop3", "smtp")

TEMPORARY = {
    "imap": ("[UNAVAILABLE] Temporary server problem, try again later", None),  # RFC 5530
    "pop3": ("[SYS/TEMP] Temporary server problem, try again later", None),  # RFC 3206
    "smtp": ("Temporary server problem, try again later", "454 4.7.0"),  # RFC 4954 section 6
}
DENIED = {
    "imap": ("[AUTHENTICATIONFAILED] Invalid user name or password", None),
    "pop3": ("[AUTH] Invalid user name or password", None),
    "smtp": ("Invalid user name or password", "535 5.7.8"),
}
UNSUPPORTED = {
    "imap": ("[AUTHENTICATIONFAILED] This way to log in is not supported", None),
    "pop3": ("[AUTH] This way to log in is not supported", None),
    "smtp": ("Authentication required", "530 5.7.0"),
}

Headers = list[tuple[str, str]]


class InvalidUsersError(Exception):
    """The users file cannot be used; ``problems`` has a text for each line that is wrong, without secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TemporaryError(Exception):
    """The login can be neither allowed nor denied now."""


def log(event: str, **fields: object) -> None:
    """Write one line of JSON; no caller passes a secret."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


# ---- users ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hashed:
    """A password's scrypt hash (RFC 7914) with its parameters."""

    n: int
    r: int
    p: int
    salt: bytes
    key: bytes

    def matches(self, password: bytes) -> bool:
        """Hash a password with the same parameters and compare in constant time."""
        memory = 128 * self.r * (self.n + self.p) + 1024 * 1024
        found = hashlib.scrypt(
            password, salt=self.salt, n=self.n, r=self.r, p=self.p, maxmem=memory, dklen=len(self.key)
        )
        return hmac.compare_digest(found, self.key)

    def __str__(self) -> str:
        salt, key = (base64.b64encode(data).decode() for data in (self.salt, self.key))
        return f"{{SCRYPT}}{self.n},{self.r},{self.p},{salt},{key}"


def hash_password(password: bytes) -> Hashed:
    """Hash a password with a random salt."""
    n, r, p = SCRYPT
    salt = os.urandom(16)
    return Hashed(n, r, p, salt, hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=MAX_SCRYPT_MEMORY))


def parse_hash(text: str) -> Hashed:
    """Read what follows ``{SCRYPT}``.

    Raises:
        ValueError: It is none; the message has no part of it.
    """
    try:
        n, r, p, salt, key = text.split(",")
        found = Hashed(
            int(n),
            int(r),
            int(p),
            base64.b64decode(salt, validate=True),
            base64.b64decode(key, validate=True),
        )
    except (ValueError, binascii.Error):
        raise ValueError("the hash is not n,r,p,salt,key with the last two in base64") from None
    if found.n < 2 or found.n & (found.n - 1) or found.r < 1 or not 1 <= found.p <= 64:
        raise ValueError("n of the hash must be a power of 2, r at least 1, p from 1 to 64")
    if 128 * found.r * (found.n + found.p) > MAX_SCRYPT_MEMORY:
        raise ValueError("the hash needs more than 64 MiB of memory")
    if len(found.salt) < 8 or not 16 <= len(found.key) <= 64:
        raise ValueError("the hash needs a salt of at least 8 and a key of 16 to 64 bytes")
    return found


@dataclass(frozen=True)
class User:
    """One line of the file: a hash, or the password itself, and the user's own mail servers."""

    hashed: Hashed | None
    secret: bytes | None = field(repr=False)
    servers: Mapping[str, tuple[str, int]]


def parse_server(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 address is written in brackets.

    Raises:
        ValueError: It is none; the message has no part of it.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("a mail server must be HOST:PORT with a port from 1 to 65535")
    return host, int(port)


def parse_user(line: str) -> tuple[bytes, User]:
    """Read a line.

    Raises:
        ValueError: It is wrong; the message has no part of the secret.
    """
    fields = line.split(":", 2)
    if len(fields) < 2:
        raise ValueError("no colon between user name and password")
    name, secret, rest = fields[0], fields[1], fields[2] if len(fields) > 2 else ""
    if not name or name != name.strip():
        raise ValueError("the user name is empty, or has spaces around it")
    servers = {}
    for word in rest.split():
        protocol, _, server = word.partition("=")
        if protocol not in PROTOCOLS:
            raise ValueError(
                "the third field must be imap=, pop3= or smtp= with HOST:PORT; a password cannot hold a colon"
            )
        servers[protocol] = parse_server(server)
    if secret.startswith("{SCRYPT}"):
        return name.encode(), User(parse_hash(secret.removeprefix("{SCRYPT}")), None, servers)
    if secret.startswith("{PLAIN}") and (password := secret.removeprefix("{PLAIN}")):
        return name.encode(), User(None, password.encode(), servers)
    raise ValueError("the password must begin with {SCRYPT} or {PLAIN}, and not be empty")


def parse_users(data: bytes) -> dict[bytes, User]:
    """Read a users file.

    Raises:
        InvalidUsersError: Something in it is wrong; it names every line.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidUsersError([f"line {line}: not UTF-8"]) from None
    users: dict[bytes, User] = {}
    problems = []
    for number, entry in enumerate(text.split("\n"), 1):
        if not entry.strip() or entry.startswith("#"):
            continue
        try:
            name, user = parse_user(entry.removesuffix("\r"))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if name in users:
            problems.append(f"line {number}: this user has a line already")
        users[name] = user
    if problems:
        raise InvalidUsersError(problems)
    return users


class UsersFile:
    """The users in a file, which is read again when it changes.

    Attributes:
        problems: What is wrong with the file as it is now.
        users: From the last file that was valid, ``None`` if none was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users: dict[bytes, User] | None = None
        self.problems: list[str] = []
        self._seen: object = None

    def refresh(self) -> None:
        """Read the file if it has changed; a mounted Secret that changes is a link to another file then."""
        try:
            found = self.path.stat()
            seen: object = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == self._seen:
                return
            data = self.path.read_bytes()
        except OSError as error:
            seen, data = error.errno, None
            if seen == self._seen:
                return
            self.problems = [error.strerror or "cannot be read"]
        self._seen = seen
        if data is not None:
            self._load(data)
        if self.problems:
            log(
                "users_invalid", file=str(self.path), problems=self.problems, still_used=len(self.users or ())
            )
        else:
            log("users_loaded", file=str(self.path), users=len(self.users or ()))

    def _load(self, data: bytes) -> None:
        try:
            self.users = parse_users(data)
            self.problems = []
        except InvalidUsersError as error:
            self.problems = error.problems


# ---- decisions -----------------------------------------------------------------------------------


class Verifier:
    """Checks passwords, in as much time for a user that does not exist as for one that does."""

    def __init__(self) -> None:
        self._nobody = hash_password(os.urandom(16))
        self._key = os.urandom(32)
        self._verified: OrderedDict[bytes, float] = OrderedDict()

    def by_password(self, name: bytes, user: User | None, password: bytes) -> bool:
        """Check a password, which takes the time of a hash unless it was right within the last minutes."""
        if user is None:
            self._nobody.matches(password)
            return False
        if user.hashed is None:
            self._nobody.matches(password)
            return hmac.compare_digest(user.secret or b"", password)
        token = hmac.digest(self._key, b"\0".join((name, user.hashed.key, password)), "sha256")
        if self._verified.get(token, 0.0) > time.monotonic():
            return True
        if not user.hashed.matches(password):
            return False
        self._verified[token] = time.monotonic() + VERIFIED_SECONDS
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return True

    def by_digest(self, method: str, user: User | None, challenge: bytes, digest: bytes) -> bool:
        """Check an answer to a challenge: CRAM-MD5 (RFC 2195) or APOP (RFC 1939)."""
        secret = user.secret if user is not None else None
        known = secret if secret is not None else self._key
        if method == "apop":
            expected = hashlib.md5(challenge + known, usedforsecurity=False).hexdigest()
        else:
            expected = hmac.new(known, challenge, "md5").hexdigest()
        return hmac.compare_digest(expected.encode(), digest) and secret is not None


class Service:
    """Decides about logins.

    Args:
        users: Who may log in.
        servers: Mail servers by protocol, for users without one of their own.
        key: What ``X-Auth-Key`` of every request must be, empty for no check.
    """

    def __init__(self, users: UsersFile, servers: Mapping[str, tuple[str, int]], key: str) -> None:
        self.users = users
        self.key = key.encode()
        self._servers = servers
        self._verifier = Verifier()
        self._threads = ThreadPoolExecutor(HASHING_THREADS)

    async def answer(self, request: Mapping[str, str]) -> Headers:
        """Give the headers of the answer to a request."""
        started = time.monotonic()
        protocol, method = request.get("auth-protocol", ""), request.get("auth-method", "")
        name = unquote_to_bytes(request.get("auth-user", ""))
        user = None
        try:
            if protocol not in PROTOCOLS:
                raise TemporaryError("no Auth-Protocol of imap, pop3 or smtp")
            if self.users.users is None:
                raise TemporaryError("there is no valid users file")
            user = self.users.users.get(name)
            result, headers = await self._decide(request, protocol, method, name, user)
            reason = None
        except TemporaryError as error:
            result, reason = "temporary_error", str(error)
            headers = refusal(TEMPORARY, protocol, wait=DENIED_WAIT)
        log(
            "login",
            result=result,
            reason=reason,
            protocol=protocol[:8],
            method=method[:16],
            # Who types a password in place of the name does not find it in the log.
            user=name.decode("utf-8", "replace") if user is not None else None,
            client=request.get("client-ip", "")[:64],
            seconds=round(time.monotonic() - started, 3),
        )
        return headers

    async def _decide(
        self, request: Mapping[str, str], protocol: str, method: str, name: bytes, user: User | None
    ) -> tuple[str, Headers]:
        proof = unquote_to_bytes(request.get("auth-pass", ""))
        run = asyncio.get_running_loop().run_in_executor
        extra: Headers = []
        if method == "plain":
            is_right = await run(self._threads, self._verifier.by_password, name, user, proof)
        elif method in {"cram-md5", "apop"}:
            challenge = request.get("auth-salt", "").encode("latin-1")
            is_right = self._verifier.by_digest(method, user, challenge, proof)
            if is_right and user is not None and user.secret is not None and protocol != "smtp":
                # The proxy has no password to log in with: a digest is none.
                extra = [("Auth-Pass", user.secret.decode())]
        else:
            return "unsupported", refusal(UNSUPPORTED, protocol)
        if not is_right or user is None:
            attempt = request.get("auth-login-attempt", "")
            is_last = attempt.isdecimal() and int(attempt) >= MAX_ATTEMPTS
            return "denied", refusal(DENIED, protocol, wait=0 if is_last else DENIED_WAIT)
        address, port = await self._mail_server(user, protocol)
        grant = [("Auth-Status", "OK"), ("Auth-Server", address), ("Auth-Port", str(port))]
        return "allowed", grant + extra

    async def _mail_server(self, user: User, protocol: str) -> tuple[str, int]:
        """Look up the address of a user's mail server: ``Auth-Server`` must not be a name."""
        server = user.servers.get(protocol) or self._servers.get(protocol)
        if server is None:
            raise TemporaryError(f"no mail server for {protocol}")
        host, port = server
        look_up = asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(look_up, LOOKUP_TIMEOUT)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise TemporaryError(f"the address of {host} is not known: {error or 'timeout'}") from None
        return str(found[0][4][0]), port


def refusal(texts: Mapping[str, tuple[str, str | None]], protocol: str, wait: int = 0) -> Headers:
    """Give the headers that refuse a login; without a wait, the proxy closes the connection."""
    text, code = texts.get(protocol) or texts["smtp"]
    headers = [("Auth-Status", text)]
    headers += [("Auth-Error-Code", code)] if code is not None else []
    return headers + ([("Auth-Wait", str(wait))] if wait else [])


# ---- HTTP ----------------------------------------------------------------------------------------


class BadRequestError(Exception):
    """This is not a request that can be answered; ``status`` is the HTTP status."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def parse_request(head: bytes) -> tuple[str, bool, dict[str, str]]:
    """Read a request's head: path, whether the connection may stay open, headers by lower-case name.

    Raises:
        BadRequestError: It is malformed, has a body, or is not a GET.
    """
    request_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, _, rest = request_line.partition(" ")
    target, _, version = rest.rpartition(" ")
    if version not in {"HTTP/1.0", "HTTP/1.1"} or not target.startswith("/"):
        raise BadRequestError("400 Bad Request")
    if method != "GET":
        raise BadRequestError("405 Method Not Allowed")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name.strip() != name or name in headers:
            raise BadRequestError("400 Bad Request")
        headers[name] = value.strip(" ")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise BadRequestError("413 Content Too Large")
    options = headers.get("connection", "").lower()
    persists = "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)
    return target.partition("?")[0], persists, headers


def render_response(status: str, headers: Headers, body: bytes, *, persists: bool) -> bytes:
    """Give the bytes of a response; a header that would break out of its line is an error of ours."""
    lines = [f"HTTP/1.1 {status}"]
    for name, value in headers:
        if any(ord(char) < 32 for char in value):
            raise ValueError(f"{name} has a control character")
        lines.append(f"{name}: {value}")
    lines += [f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if persists else 'close'}", "", ""]
    return "\r\n".join(lines).encode() + body


class HttpServer:
    """Serves a few hundred connections that stay open between requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def serve(self, address: tuple[str, int], drain_delay: float) -> None:
        """Serve until SIGTERM or SIGINT; end what is in flight then."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped.set)
        self._service.users.refresh()
        server = await asyncio.start_server(
            self._on_connection, address[0] or None, address[1], limit=MAX_REQUEST
        )
        log("listening", addresses=[one.getsockname()[:2] for one in server.sockets])
        while not stopped.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), 1.0)
            self._service.users.refresh()
        self._is_stopping = (
            True  # each answer closes its connection; new ones come until the endpoint is gone
        )
        log("stopping", connections=len(self._tasks), delay=drain_delay)
        await asyncio.sleep(drain_delay)
        server.close()
        for task in self._idle:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT)
            for task in late:
                task.cancel()
        log("stopped")

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._tasks.add(task)
        try:
            if len(self._tasks) > MAX_CONNECTIONS:
                log("too_many_connections", limit=MAX_CONNECTIONS)
                writer.write(
                    render_response("503 Service Unavailable", refusal(TEMPORARY, ""), b"", persists=False)
                )
            else:
                while await self._serve_request(task, reader, writer):
                    pass
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the proxy has closed the connection, or nothing came for a long time
        finally:
            self._tasks.discard(task)
            self._idle.discard(task)
            writer.close()

    async def _serve_request(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; tell whether another may follow."""
        self._idle.add(task)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_TIMEOUT)
        except asyncio.LimitOverrunError:
            writer.write(render_response("431 Request Header Fields Too Large", [], b"", persists=False))
            return False
        finally:
            self._idle.discard(task)
        try:
            path, persists, headers = parse_request(head)
            status, found, body = await self._respond(path, headers)
        except BadRequestError as error:
            log("bad_request", status=error.status)
            status, found, body, persists = error.status, [], b"", False
        persists = persists and not self._is_stopping
        writer.write(render_response(status, found, body, persists=persists))
        await writer.drain()
        return persists

    async def _respond(self, path: str, headers: Mapping[str, str]) -> tuple[str, Headers, bytes]:
        if path == "/healthz":
            problems = self._service.users.problems
            body = "".join(f"users: {problem}\n" for problem in problems) or "ok\n"
            return "200 OK", [("Content-Type", "text/plain; charset=utf-8")], body.encode()
        if path != "/auth":
            raise BadRequestError("404 Not Found")
        given = headers.get("x-auth-key", "").encode("latin-1")
        if self._service.key and not hmac.compare_digest(given, self._service.key):
            raise BadRequestError("403 Forbidden")
        try:
            return "200 OK", await self._service.answer(headers), b""
        except Exception as error:
            log("internal_error", error=type(error).__name__)  # a message could hold a secret
            return "200 OK", refusal(TEMPORARY, headers.get("auth-protocol", ""), wait=DENIED_WAIT), b""


# ---- commands ------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    servers = {name: server for name in PROTOCOLS if (server := getattr(options, name))}
    key = os.environ.get("AUTH_KEY", "")
    service = Service(UsersFile(options.users), servers, key)
    if not key:
        log("no_auth_key", note="AUTH_KEY is empty: whoever reaches this port can try passwords")
    try:
        asyncio.run(HttpServer(service).serve(options.listen, options.drain_delay))
    except OSError as error:
        sys.stderr.write(f"auth.py: cannot listen: {error.strerror}\n")
        return 3
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        users = parse_users(options.users.read_bytes())
    except InvalidUsersError as error:
        sys.stderr.write("".join(f"{options.users}: {problem}\n" for problem in error.problems))
        return 1
    except OSError as error:
        sys.stderr.write(f"{options.users}: {error.strerror}\n")
        return 1
    sys.stdout.write(f"{len(users)} users\n")
    return 0


def _hash(_: argparse.Namespace) -> int:
    typed = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not typed:
        sys.stderr.write("auth.py: an empty password\n")
        return 1
    sys.stdout.write(f"{hash_password(typed.encode())}\n")
    return 0


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError
    return host.strip("[]"), int(port)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 fine, 1 wrong input, 2 usage, 3 cannot listen."""
    parser = argparse.ArgumentParser(prog="auth.py", description="An authentication service for auth_http.")
    commands = parser.add_subparsers(required=True)
    serve = commands.add_parser("serve", help="answer requests")
    serve.add_argument("--users", type=Path, required=True, metavar="FILE")
    serve.add_argument(
        "--listen", type=_listen, default=("", 9000), metavar="[HOST]:PORT", help=":9000 by default"
    )
    for name in PROTOCOLS:
        serve.add_argument(
            f"--{name}", type=parse_server, metavar="HOST:PORT", help=f"the {name.upper()} server of users"
        )
    serve.add_argument(
        "--drain-delay", type=float, default=3.0, metavar="SECONDS", help="after SIGTERM, 3 by default"
    )
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="print every problem of a users file")
    check.add_argument("users", type=Path, metavar="FILE")
    check.set_defaults(run=_check)
    hashing = commands.add_parser(
        "hash", help="print the hash of a password, from the terminal or standard input"
    )
    hashing.set_defaults(run=_hash)
    options = parser.parse_args(arguments)
    run: functools.partial[int] = functools.partial(options.run, options)
    return run()


if __name__ == "__main__":
    sys.exit(main())
