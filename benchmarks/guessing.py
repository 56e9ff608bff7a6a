# SPDX-License-Identifier: Apache-2.0
"""Logins of honest users while passwords are guessed from many addresses.

``python -m benchmarks.guessing [ADDRESSES [SECONDS]]`` runs a proxy with two workers and ``auth_penalty``.
Addresses come in PROXY headers.  First 50 users log in without attackers, then beside them each of 10,000
addresses guesses one password of one account, half of them of the users' own, within 60 seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final

USERS: Final = 50
QUIET_SECONDS: Final = 20.0
PAUSE_SECONDS: Final = 0.5
"""Between two logins of one user."""
AUTH_SECONDS: Final = 0.005
"""What the authentication service takes for a password, as one with a fast hash does."""
PASSWORD: Final = b"right"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def serve_auth(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, imap: int) -> None:
    """Be an authentication service: one password is right, for every account."""
    while head := await read_head(reader):
        await asyncio.sleep(AUTH_SECONDS)
        is_right = re.search(rb"Auth-Pass: (.*)\r\n", head)
        if is_right is not None and is_right[1] == PASSWORD:
            answer = b"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: %d\r\n" % imap
        else:
            answer = b"Auth-Status: Invalid login or password\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + answer + b"Content-Length: 0\r\n\r\n")
    writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Read the head of a request; empty at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the last one at the end
        return b""


async def serve_imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a mail server that accepts every login."""
    writer.write(b"* OK ready\r\n")
    tag = b""
    while line := await reader.readline():
        tag = tag or line.split(b" ")[0]
        if line.rstrip().endswith(b"}"):
            writer.write(b"+ OK\r\n")
        else:
            writer.write(tag + b" OK done\r\n")
    writer.close()


async def log_in(port: int, address: str, user: str, password: bytes) -> tuple[bytes, float]:
    """Log in from an address; returns the reply, and the seconds from the connection to it."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"PROXY TCP4 %b 192.0.2.1 40000 143\r\n" % address.encode())
        await reader.readline()
        writer.write(b"a LOGIN %b %b\r\n" % (user.encode(), password))
        return await reader.readline(), time.perf_counter() - started
    finally:
        writer.close()


async def honest(port: int, number: int, seconds: float, times: list[float], others: list[bytes]) -> None:
    """Be one user, from one address: log in again and again."""
    end = time.monotonic() + seconds
    await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
    while time.monotonic() < end:
        reply, took = await log_in(port, f"198.51.100.{number}", f"user{number}", PASSWORD)
        if reply.startswith(b"a OK"):
            times.append(took)
        else:
            others.append(reply)
        await asyncio.sleep(PAUSE_SECONDS)


async def attack(port: int, number: int, begins: float, replies: list[bytes]) -> None:
    """Guess one password from one address."""
    await asyncio.sleep(begins)
    user = f"user{number % USERS}" if number % 2 else f"other{number}"
    address = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
    reply, _ = await log_in(port, address, user, b"guess%d" % number)
    replies.append(reply)


async def attack_all(port: int, addresses: int, seconds: float) -> None:
    """Be all attackers, and print the replies that they got."""
    replies: list[bytes] = []
    begins = (seconds * number / addresses for number in range(addresses))
    await asyncio.gather(*(attack(port, number, at, replies) for number, at in enumerate(begins)))
    print(f"guesses: {len(replies)}, by reply: { ({one: replies.count(one) for one in set(replies)}) }")


async def users(port: int, seconds: float) -> tuple[list[float], list[bytes]]:
    """Let all users log in; returns the times of their logins, and other replies."""
    times: list[float] = []
    others: list[bytes] = []
    await asyncio.gather(*(honest(port, number, seconds, times, others) for number in range(USERS)))
    return times, others


@contextmanager
def proxy(auth: int) -> Iterator[tuple[int, int]]:
    """Run a proxy; returns its port and that of its metrics."""
    port, admin = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(
            "worker_processes 2; worker_rlimit_nofile 65536; events { worker_connections 8192; }\n"
            f"mail {{ auth_http 127.0.0.1:{auth}/; auth_penalty on; set_real_ip_from 127.0.0.1;\n"
            f"server {{ listen 127.0.0.1:{port} proxy_protocol; protocol imap; server_name x; }} }}\n"
        )
        command = [
            sys.executable,
            "-m",
            "mailproxy",
            "run",
            "-f",
            str(config),
            "--admin",
            f"127.0.0.1:{admin}",
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield port, admin
        finally:
            process.terminate()
            process.wait(30)


def metrics(admin: int) -> str:
    """Return the lines about failed logins."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as response:
        text: str = response.read().decode()
    return "\n".join(
        line for line in text.splitlines() if line.startswith("mailproxy_auth_") and "penalt" in line
    )


def line(name: str, times: list[float], others: list[bytes]) -> str:
    """Return the results of one phase."""
    p99 = quantiles(times, n=100)[98]
    return (
        f"{name}: {len(times)} logins, {len(others)} not allowed, "
        f"median {median(times) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, longest {max(times) * 1000:.0f} ms"
    )


async def main(addresses: int, seconds: float) -> None:
    """Print one line for each phase."""
    imap_server = await asyncio.start_server(serve_imap, "127.0.0.1", 0, backlog=4096)
    imap = imap_server.sockets[0].getsockname()[1]
    auth_server = await asyncio.start_server(
        lambda reader, writer: serve_auth(reader, writer, imap), "127.0.0.1", 0, backlog=4096
    )
    with proxy(auth_server.sockets[0].getsockname()[1]) as (port, admin):
        for _ in range(200):
            try:
                await log_in(port, "203.0.113.1", "nobody", PASSWORD)
                break
            except OSError:
                await asyncio.sleep(0.1)
        quiet, refused = await users(port, QUIET_SECONDS)
        print(line("quiet", quiet, refused), flush=True)
        attackers = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.guessing", "attack", str(port), str(addresses), str(seconds)),
            stdout=asyncio.subprocess.PIPE,
        )
        (busy, refused), (output, _) = await asyncio.gather(users(port, seconds + 3), attackers.communicate())
        print(line("spray", busy, refused))
        print(output.decode(), end="")
        await asyncio.sleep(2)
        print(metrics(admin))
    imap_server.close()
    auth_server.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        os.nice(10)  # attackers do not take the processors of the proxy and its users
        asyncio.run(attack_all(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
    else:
        given = [float(one) for one in sys.argv[1:]]
        asyncio.run(main(int(given[0]) if given else 10_000, given[1] if len(given) > 1 else 60.0))
