# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.login_costs``: what limits, penalties and policy servers add to a login.

A worker runs under callgrind, which counts its instructions in user mode: they depend neither on the
machine nor on its load.  System calls do not count.  One client logs in again and again, one login at a
time.  Each row is a listener of the same proxy; its ratio is to the row without limits.
``--functions`` shows where the instructions are.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from benchmarks import procfs
from benchmarks.callgrind import (
    BATCH,
    ROOT,
    START_SECONDS,
    CountedWorker,
    end_proxy,
    print_functions,
    start_proxy,
    total,
)
from benchmarks.processes import MissingProgram, wait_for

_BASE: Final = 24500
_AUTH, _IMAP, _SMTP, _POLICY, _ADMIN = range(_BASE, _BASE + 5)
_GROUPS: Final = 3
"""Groups of logins that are counted for a row."""
_MANY: Final = 100
"""Users, each with an address of its own, that log in one after the other."""
_LIMITS: Final = (
    "limit_conn user 60000;",
    "limit_req zone=rate burst=60000 nodelay;",
    "limit_preauth 60000;",
)
_ZONES: Final = """
limit_conn_zone $remote_user zone=user:1m; limit_conn_zone $remote_addr zone=one:32k;
limit_req_zone $remote_addr zone=rate:1m rate=100000r/s; limit_req_zone $remote_user zone=slow:1m rate=1r/m;
limit_req_zone $remote_addr zone=held:1m rate=100r/s;
"""


@dataclass(frozen=True)
class Variant:
    """A listener and its clients.

    Attributes:
        name: Of the row.
        settings: Directives of the ``server`` block.
        base: The row that the ratio is to; empty for none.
        protocol: ``imap`` or ``smtp``.
        user: The user name, with ``%d`` for the number of one of many users.
        is_proxied: Whether each client sends a PROXY header with an address of its own.
        is_held: Whether one client stays logged in.
    """

    name: str
    settings: str = ""
    base: str = "no limits"
    protocol: str = "imap"
    user: str = "user@example.com"
    is_proxied: bool = False
    is_held: bool = False


def _policy(parameters: str) -> str:
    return f"auth_policy_server http://127.0.0.1:{_POLICY}/ nonce_file={{nonce}} {parameters};"


VARIANTS: Final = (
    Variant("no limits", base=""),
    Variant("limit_conn by user", _LIMITS[0]),
    Variant("limit_req by address", _LIMITS[1]),
    Variant("limit_preauth", _LIMITS[2]),
    Variant("all three", "".join(_LIMITS)),
    Variant("refused by limit_req", "limit_req zone=slow;"),
    Variant("refused by limit_conn", "limit_conn one 1;", is_held=True),
    Variant("refused by limit_preauth", "limit_preauth 1;", is_held=True),
    Variant("delayed by limit_req", "limit_req zone=held burst=60000;"),
    Variant("auth_penalty, known user", "auth_penalty on;"),
    Variant("all three and auth_penalty", "".join(_LIMITS) + "auth_penalty on;"),
    Variant("100 users", base="", user="user%d@example.com", is_proxied=True),
    Variant(
        "100 users, all three", "".join(_LIMITS), "100 users", user="user%d@example.com", is_proxied=True
    ),
    Variant(
        "100 users, auth_penalty", "auth_penalty on;", "100 users", user="user%d@example.com", is_proxied=True
    ),
    Variant("policy server, before", _policy("check_after=off report=off")),
    Variant("policy server, before and after", _policy("report=off")),
    Variant("policy server, report", _policy("check_before=off check_after=off")),
    Variant("policy server, all", _policy("report=on")),
    Variant("imap, auth_mode upstream", "auth_mode upstream;"),
    Variant("smtp, auth_http", "proxy_smtp_auth on; xclient off;", base="", protocol="smtp"),
    Variant("smtp, auth_mode upstream", "auth_mode upstream;", "smtp, auth_http", protocol="smtp"),
)


def port_of(variant: Variant) -> int:
    """Return the port of a listener."""
    return _BASE + 10 + VARIANTS.index(variant)


def configuration(folder: Path, variants: Sequence[Variant]) -> str:
    """Return the ``nginx.conf``, with a listener for each variant."""
    (folder / "nonce").write_text("a nonce\n")
    servers = []
    for variant in variants:
        listen = f"listen 127.0.0.1:{port_of(variant)}{' proxy_protocol' if variant.is_proxied else ''};"
        settings = variant.settings.replace("{nonce}", f"{folder}/nonce")
        if "auth_mode" in settings:
            settings += f" route domain=example.com upstream={variant.protocol};"
        servers.append(f"server {{ {listen} protocol {variant.protocol}; {settings} }}")
    return (
        f"error_log {folder}/mailproxy.error error;\nevents {{ worker_connections 4000; }}\nmail {{\n"
        f"server_name mail.example.com; auth_http 127.0.0.1:{_AUTH}/auth; set_real_ip_from 127.0.0.1;\n"
        f"smtp_auth plain login; upstream smtp {{ server 127.0.0.1:{_SMTP}; }}\n"
        f"upstream imap {{ server 127.0.0.1:{_IMAP}; }}\n" + _ZONES + "\n".join(servers) + "\n}\n"
    )


# -- servers


async def _serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_policy: bool) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if is_policy:
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"status":0,"msg":""}')
                continue
            port = _SMTP if b"Auth-Protocol: smtp" in head else _IMAP
            answer = b"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: %d\r\n" % port
            writer.write(b"HTTP/1.1 200 OK\r\n" + answer + b"Content-Length: 0\r\n\r\n")
    writer.close()


async def _serve_imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tag = b""
    with suppress(ConnectionError):
        writer.write(b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=PLAIN] ready\r\n")
        while line := await reader.readline():
            tag = tag or line.split(b" ")[0]
            if line.rstrip().endswith(b"+}"):
                continue
            writer.write(b"+ OK\r\n" if line.rstrip().endswith(b"}") else tag + b" OK done\r\n")
    writer.close()


async def _serve_smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        writer.write(b"220 backend ESMTP\r\n")
        while line := await reader.readline():
            if line.startswith(b"EHLO"):
                writer.write(b"250-backend\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n")
            else:
                writer.write(b"334 \r\n" if line == b"AUTH PLAIN\r\n" else b"235 2.7.0 OK\r\n")
    writer.close()


def _serve(loop: asyncio.AbstractEventLoop, is_ready: threading.Event) -> None:
    """Run the authentication service, the mail servers and the policy server until the process ends."""

    async def start() -> None:
        for port, handler in (
            (_AUTH, lambda reader, writer: _serve_http(reader, writer, is_policy=False)),
            (_POLICY, lambda reader, writer: _serve_http(reader, writer, is_policy=True)),
            (_IMAP, _serve_imap),
            (_SMTP, _serve_smtp),
        ):
            await asyncio.start_server(handler, "127.0.0.1", port)
        is_ready.set()

    loop.create_task(start())
    loop.run_forever()


# -- clients


def log_in(variant: Variant, number: int = 0) -> socket.socket | None:
    """Connect and log in once; returns the connection, or ``None`` where it was refused."""
    sock = socket.create_connection(("127.0.0.1", port_of(variant)), START_SECONDS)
    replies = sock.makefile("rb")
    if variant.is_proxied:
        sock.sendall(b"PROXY TCP4 198.51.100.%d 192.0.2.1 40000 143\r\n" % (number % _MANY))
    reply = replies.readline()
    user = variant.user % (number % _MANY) if "%d" in variant.user else variant.user
    if not reply:
        pass
    elif variant.protocol == "imap":
        sock.sendall(f"a LOGIN {user} secret\r\n".encode())
        reply = replies.readline()
    else:
        sock.sendall(b"EHLO me.example.com\r\n")
        _last_line(replies)
        sock.sendall(b"AUTH PLAIN AHVzZXJAZXhhbXBsZS5jb20Ac2VjcmV0\r\n")
        reply = _last_line(replies)
    if reply.startswith((b"a OK", b"235")):
        return sock
    sock.close()
    return None


def _last_line(replies: BinaryIO) -> bytes:
    line = replies.readline()
    while line[3:4] == b"-":
        line = replies.readline()
    return line


def log_in_repeatedly(variant: Variant, logins: int, first: int = 0) -> int:
    """Log in, one login at a time; returns how many were accepted."""
    accepted = 0
    for number in range(first, first + logins):
        sock = log_in(variant, number)
        if sock is not None:
            accepted += 1
            sock.close()
    return accepted


# -- callgrind


def instructions(worker: CountedWorker, variant: Variant) -> tuple[int, int, str]:
    """Count the logins of a listener; returns instructions per login, accepted ones, and the last dump.

    The number is the median of the groups.
    """
    held = None
    if "preauth" in variant.name and variant.is_held:
        held = socket.create_connection(("127.0.0.1", port_of(variant)))
    elif variant.is_held:
        held = log_in(variant)
    log_in_repeatedly(variant, _MANY if variant.is_proxied else 30)
    worker.dump()
    counts, accepted, text = [], 0, ""
    for number in range(_GROUPS):
        accepted += log_in_repeatedly(variant, BATCH, number * BATCH)
        time.sleep(0.05)  # the end of the last session, and its report
        text = worker.dump()
        counts.append(total(text) // BATCH)
    if held is not None:
        held.close()
    return sorted(counts)[_GROUPS // 2], accepted, text


@contextmanager
def counted_worker(source: Path, variants: Sequence[Variant]) -> Iterator[CountedWorker]:
    """Start the servers, and the proxy of a checkout under callgrind.

    Raises:
        MissingProgram: valgrind is not installed.
    """
    is_ready = threading.Event()
    threading.Thread(target=_serve, args=(asyncio.new_event_loop(), is_ready), daemon=True).start()
    is_ready.wait()
    with tempfile.TemporaryDirectory(prefix="mailproxy-costs-") as name:
        folder = Path(name)
        (folder / "mailproxy.conf").write_text(configuration(folder, variants))
        with open(folder / "log", "w", encoding="utf-8") as log:
            proxy = start_proxy(folder, log, _ADMIN, source)
        try:
            for _ in range(START_SECONDS // 10):
                with suppress(RuntimeError):
                    wait_for(port_of(variants[-1]), proxy)
                    break
                if proxy.poll() is not None:
                    raise RuntimeError((folder / "log").read_text()[-2000:])
            log_in_repeatedly(variants[0], 1)  # when it succeeds, the worker runs
            worker = CountedWorker(procfs.children(proxy.pid)[-1], folder)
            worker.count()
            yield worker
        finally:
            end_proxy(proxy)


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.login_costs", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows with this text, and those without limits"
    )
    parser.add_argument("--source", type=Path, default=ROOT, help="another checkout to count")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="show the N dearest C functions"
    )
    options = parser.parse_args(argv)
    wanted = [variant for variant in VARIANTS if options.only in variant.name]
    bases = {variant.base for variant in wanted}
    variants = [variant for variant in VARIANTS if variant in wanted or variant.name in bases]
    counts: dict[str, int] = {}
    try:
        with counted_worker(options.source, variants) as worker:
            for variant in variants:
                count, accepted, text = instructions(worker, variant)
                counts[variant.name] = count
                base = counts.get(variant.base, count)
                ratio = f"{count - base:+9,}  x {count / base:.3f}" if variant.base else ""
                print(f"{variant.name:34} {count:9,} {ratio:20} accepted {accepted}", flush=True)
                print_functions(text, options.functions)
    except MissingProgram as missing:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
