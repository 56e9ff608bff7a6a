# SPDX-License-Identifier: Apache-2.0
"""The cost of a login about which the upstream decides, compared with one of an authentication service.

    python -m benchmarks.upstream_verdict [--rounds N] [--seconds S] [--clients N] [--write]

A login with ``authMode: Upstream`` must take at most the CPU of one with ``auth_http``, less that of the
request.  ``--write`` writes ``benchmarks/UPSTREAM_VERDICT.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from benchmarks.clients import Scene
from benchmarks.processes import (
    LOAD_CPU,
    PORTS,
    PROXY_CPU,
    LoadProcess,
    Proxy,
    pinned,
    raise_open_files_limit,
    start_with_conf,
    stop,
    wait_for,
)
from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.enums import Method
from mailproxy.protocols.types import AuthRequest, Client, Credentials, Secret
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy_config.model import AuthHttp, Protocol, ServerConfig
from support import configs
from support.loopback_worker import loopback_worker, run

PAGE: Final = Path(__file__).parent / "UPSTREAM_VERDICT.md"
_AUTH, _IMAP, _BARE, _POP3, _SMTP = (PORTS.base + 100 + index for index in range(5))
_UPSTREAMS: Final = {"imap": _IMAP, "pop3": _POP3, "smtp": _SMTP}
_MODES: Final = ("http", "upstream")
_METHOD: Final = """\
The proxy runs on processor 0; clients, mail servers and the authentication service on processor 1. Both
modes are measured in turns in every round; the table has medians. CPU of a login is the worker's own, from
`/proc/PID/task/*/schedstat`, with clients that log in repeatedly. CPU of a request is that of a process on
processor 0 that sends nothing but requests to the authentication service, with the proxy's own client and
as many at the same time. SMTP logins are AUTH PLAIN at the mail server in both modes (`proxy_smtp_auth`),
with an initial response in the mode of nginx, and without one in the other, which is one exchange more."""


def port_of(protocol: str, mode: str) -> int:
    """Return the port of a listener of the proxy."""
    return PORTS.base + 110 + 2 * list(_UPSTREAMS).index(protocol) + _MODES.index(mode)


def configuration(limit: int) -> str:
    """Return the ``nginx.conf``: a server for each protocol and mode."""
    blocks = []
    for protocol, port in _UPSTREAMS.items():
        blocks.append(f"upstream {protocol} {{ server 127.0.0.1:{port}; }}")
        for mode in _MODES:
            lines = [f"listen 127.0.0.1:{port_of(protocol, mode)}; protocol {protocol};"]
            if mode == "http":
                lines.append(f"auth_http 127.0.0.1:{_AUTH}/auth; proxy_smtp_auth on; xclient off;")
            else:
                lines.append(f"auth_mode upstream; route domain=example.com upstream={protocol};")
            blocks.append("server { " + " ".join(lines) + " }")
    return (
        f"worker_processes 1;\nworker_rlimit_nofile {limit};\nerror_log stderr error;\n"
        "events { worker_connections 40000; }\nmail {\n" + "\n".join(blocks) + "\n}\n"
    )


async def send_requests(protocol: Protocol, seconds: float, concurrency: int) -> float:
    """Send requests to the authentication service; return the CPU seconds of one."""

    def build(_: AuthHttp, listen: Any) -> ServerConfig:  # noqa: ANN401 - of the tests
        where = AuthHttp(host="127.0.0.1", port=_AUTH, uri="/auth")
        return configs.server(protocol, auth_http=where, listen=(listen,))

    async with loopback_worker(build, b"") as w:
        (server,) = w.app._servers.values()  # noqa: SLF001 - no other way leads to it
        loop = asyncio.get_running_loop()
        done = 0
        ended: asyncio.Future[None] = loop.create_future()
        deadline = time.monotonic() + seconds
        seconds_of = server.protocol_metrics.auth_seconds

        def send(_: object = None) -> None:
            nonlocal done
            done += 1
            if time.monotonic() > deadline:
                if not ended.done():
                    ended.set_result(None)
                return
            credentials = Credentials(Method.PASSWORD, b"user@example.com", Secret(b"password"))
            request = AuthRequest(credentials, 1, Client("127.0.0.1", 1, "127.0.0.1", 143))
            now = w.app.context.epoll.now
            data = server.template.render(request)
            pending = PendingRequest(send, data, request, server.config, seconds_of, now, SessionRecord())
            server.auth.send(pending)

        started = time.process_time()
        for _ in range(concurrency):
            send()
        await ended
        return (time.process_time() - started) / done


def measure(options: argparse.Namespace) -> Iterator[tuple[str, str, list[float], str]]:
    """Measure; yields what, the unit, the values by round, and the target."""
    limit = raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-bench-") as name, ExitStack() as stack:
        ports = map(str, (_AUTH, _IMAP, _BARE, _POP3, _SMTP))
        process = pinned(LOAD_CPU, sys.executable, "-m", "benchmarks.verdict_stub_servers", *ports)
        stack.callback(stop, process)
        wait_for(_IMAP, process)
        load = LoadProcess()
        stack.callback(load.stop)
        last = port_of("smtp", "upstream")
        proxy = start_with_conf(Path(name), options.python, configuration(limit), last)
        stack.callback(proxy.stop)
        for protocol in _UPSTREAMS:
            yield from _compare(options, protocol, load, proxy)


def _compare(
    options: argparse.Namespace, protocol: str, load: LoadProcess, proxy: Proxy
) -> Iterator[tuple[str, str, list[float], str]]:
    found: dict[str, list[float]] = {each: [] for each in (*_MODES, "request")}
    for number in range(options.rounds + 1):
        for mode in _MODES:
            before = proxy.cpu()
            scene = Scene(protocol, port_of(protocol, mode))
            report = load.do("saturate", scene, conns=options.clients, seconds=options.seconds)
            if number:
                found[mode].append((proxy.cpu() - before) / max(report["done"], 1) * 1e6)
        if number:
            found["request"].append(_request(options, protocol))
    yield f"{protocol} login, auth_http", "µs", found["http"], ""
    yield f"{protocol} login, authMode Upstream", "µs", found["upstream"], ""
    yield f"{protocol}: request to the service", "µs", found["request"], ""
    parts = zip(*(found[each] for each in (*_MODES, "request")), strict=True)
    ratios = [upstream / (http - request) for http, upstream, request in parts]
    yield f"{protocol}: authMode Upstream / (auth_http - request)", "", ratios, "<= 1.00"


def _request(options: argparse.Namespace, protocol: str) -> float:
    """Measure requests in a process of their own; return the microseconds of one."""
    words = ("--requests", protocol, "--seconds", str(options.seconds), "--clients", str(options.clients))
    process = pinned(PROXY_CPU, options.python, "-m", "benchmarks.upstream_verdict", *words, stdout=-1)
    output, _ = process.communicate()
    return float(output) * 1e6


def page(rows: Sequence[tuple[str, str, list[float], str]], options: argparse.Namespace) -> str:
    """Return the page of results."""
    command = f"python -m benchmarks.upstream_verdict --rounds {options.rounds} --seconds {options.seconds:g}"
    moment = datetime.datetime.now(datetime.UTC)
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    lines = [
        *("# Logins about which the upstream decides", "", f"Taken {moment:%Y-%m-%d %H:%M} UTC by", ""),
        *(f"    {command} --clients {options.clients}", ""),
        f"on {os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}; "
        f"load average {load}.",
        *("", _METHOD, "", "| work | unit | median | min | max | target |", "|---|---|---|---|---|---|"),
    ]
    for work, unit, values, target in rows:
        figures = f"**{statistics.median(values):.2f}** | {min(values):.2f} | {max(values):.2f}"
        lines.append(f"| {work} | {unit} | {figures} | {target} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream_verdict", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--clients", type=int, default=32, help="number of clients that log in repeatedly")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the proxy's interpreter, with its dependencies",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--requests", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.requests:
        protocol = Protocol(options.requests)
        print(run(lambda: send_requests(protocol, options.seconds, options.clients)))
        return 0
    rows = []
    for row in measure(options):
        rows.append(row)
        work, unit, values, target = row
        spread = f"({min(values):.2f} - {max(values):.2f})"
        print(f"{work:50} {statistics.median(values):9.2f} {unit:3} {spread} {target}", flush=True)
    if options.write:
        PAGE.write_text(page(rows, options))
        print(f"\nwritten to {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
