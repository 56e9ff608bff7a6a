# SPDX-License-Identifier: Apache-2.0
"""The cost of TLS to mail servers: CPU per login, resumption, and bulk data.

    python -m benchmarks.upstream_tls [--rounds N] [--seconds S] [--clients N] [--write]

nginx has no TLS to mail servers, so the proxy is compared with itself: TLS on both sides with the sum of
TLS on either side, and bulk data to a mail server with bulk data to a client.  ``--write`` writes
``benchmarks/UPSTREAM_TLS.md``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.clients import Scene
from benchmarks.processes import (
    LOAD_CPU,
    PORTS,
    LoadProcess,
    Proxy,
    pinned,
    raise_open_files_limit,
    start_with_conf,
    stop,
    wait_for,
)

PAGE: Final = Path(__file__).parent / "UPSTREAM_TLS.md"
GIB: Final = 1 << 30
_AUTH, _IMAP, _TLS_AUTH, _TLS_IMAP = (PORTS.base + 80 + index for index in range(4))
_STUBS: Final = (PORTS.base + 84, PORTS.base + 85, PORTS.base + 86)
"""Ports of protocols that are not measured."""
_ADMIN: Final = PORTS.base + 60
_SETTLE_SECONDS: Final = 2.5
"""Until the metrics of a worker are in those of the proxy."""
_METHOD: Final = """\
The proxy runs on processor 0; clients, mail servers and authentication services on processor 1. All variants
are measured in turns in every round; the tables have medians. CPU is the worker's own, from
`/proc/PID/task/*/schedstat`. Certificates have ECDSA keys (P-256), TLS is 1.3, and certificates of mail
servers are verified. Clients resume nothing. *Sum of either side* is the cost of a login with TLS
with clients only, plus that with TLS with mail servers only, minus that of a plain login.
The share of resumed handshakes is from the proxy's own metrics."""


@dataclass(frozen=True)
class Variant:
    """A listener of the proxy: TLS with clients, and with mail servers.

    Attributes:
        upstream: ``off``, ``full`` (no resumption) or ``resumed``.
    """

    name: str
    is_tls: bool
    upstream: str

    @property
    def port(self) -> int:
        """Its port."""
        return PORTS.proxy("mailproxy", "imap") + VARIANTS.index(self)

    def scene(self) -> Scene:
        """Clients of this listener."""
        return Scene("imap", self.port, tls="implicit") if self.is_tls else Scene("imap", self.port)

    def server(self, folder: Path) -> str:
        """Return the ``server`` block."""
        lines = [f"listen 127.0.0.1:{self.port}{' ssl' if self.is_tls else ''}; protocol imap;"]
        if self.is_tls:
            lines.append(f"ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;")
        if self.upstream == "off":
            lines.append(f"auth_http 127.0.0.1:{_AUTH}/auth;")
        else:
            reuse = "on" if self.upstream == "resumed" else "off"
            lines.append(
                f"auth_http 127.0.0.1:{_TLS_AUTH}/auth; proxy_ssl on; proxy_ssl_session_reuse {reuse};"
            )
            lines.append(f"proxy_ssl_name mail.example.com; proxy_ssl_trusted_certificate {folder}/tls.crt;")
        return "server { " + "\n".join(lines) + " }"


PLAIN: Final = Variant("plain on both sides", is_tls=False, upstream="off")
CLIENT: Final = Variant("TLS with clients only", is_tls=True, upstream="off")
FULL: Final = Variant("TLS with mail servers only, full handshakes", is_tls=False, upstream="full")
RESUMED: Final = Variant("TLS with mail servers only, resumed", is_tls=False, upstream="resumed")
BOTH_FULL: Final = Variant("TLS on both sides, full handshakes", is_tls=True, upstream="full")
BOTH_RESUMED: Final = Variant("TLS on both sides, mail servers resumed", is_tls=True, upstream="resumed")
VARIANTS: Final = (PLAIN, CLIENT, FULL, RESUMED, BOTH_FULL, BOTH_RESUMED)


@dataclass
class Row:
    """One result: values by round, and what the median should be."""

    work: str
    unit: str
    values: list[float]
    target: str = ""

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.values)

    def line(self) -> str:
        """Return it as a line of the output."""
        spread = f"{min(self.values):.2f} - {max(self.values):.2f}"
        target = f"  target {self.target}" if self.target else ""
        return f"{self.work:62} {self.median:9.2f} {self.unit:6} ({spread}){target}"


@dataclass
class Run:
    """Everything that a measurement needs, running."""

    load: LoadProcess
    proxy: Proxy
    rounds: int
    seconds: float
    clients: int
    found: dict[str, list[float]] = field(default_factory=dict)

    def in_turns(self, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Measure in turns; a first round does not count."""
        found: dict[str, list[float]] = {name: [] for name in measures}
        for number in range(self.rounds + 1):
            for name, measure in measures.items():
                value = measure()
                if number:
                    found[name].append(value)
        return found


def logins(run: Run) -> Iterator[Row]:
    """CPU per login, with clients (``--clients``) that log in repeatedly, as fast as possible."""

    def cpu(variant: Variant) -> float:
        before = run.proxy.cpu()
        report = run.load.do("saturate", variant.scene(), conns=run.clients, seconds=run.seconds)
        return (run.proxy.cpu() - before) / max(report["done"], 1) * 1e6

    found = run.in_turns({variant.name: lambda variant=variant: cpu(variant) for variant in VARIANTS})  # type: ignore[misc]
    for name, values in found.items():
        yield Row(f"login, {name}", "µs", values)
    for both, one in ((BOTH_FULL, FULL), (BOTH_RESUMED, RESUMED)):
        parts = zip(*(found[each.name] for each in (both, CLIENT, one, PLAIN)), strict=True)
        ratios = [whole / (client + upstream - plain) for whole, client, upstream, plain in parts]
        yield Row(f"{both.name} / sum of either side", "", ratios, "<= 1.05")


def resumption(run: Run) -> Iterator[Row]:
    """Share of resumed handshakes with one mail server, at a steady rate of logins."""
    seconds = max(run.seconds * 10, 4.0)
    before = _handshakes()
    run.load.do("pace", RESUMED.scene(), rate=50, seconds=seconds)
    time.sleep(_SETTLE_SECONDS)
    after = _handshakes()
    resumed, full = (after[word] - before[word] for word in ("true", "false"))
    yield Row(
        f"resumed, of {resumed + full:.0f} handshakes at 50/s",
        "%",
        [100 * resumed / (resumed + full)],
        ">= 90",
    )


def _handshakes() -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{_ADMIN}/metrics", timeout=10) as response:
        text = response.read().decode()
    pattern = (
        r'mailproxy_upstream_tls_handshake_seconds_count\{[^}]*protocol="imap",resumed="(\w+)"\} ([0-9.e+]+)'
    )
    found = {word: float(value) for word, value in re.findall(pattern, text)}
    return {"true": 0.0, "false": 0.0} | found


def bulk(run: Run) -> Iterator[Row]:
    """CPU per GiB relayed, and how fast, with 16 streams."""
    rates: dict[str, list[float]] = {}

    def cpu(what: str, variant: Variant, name: str) -> float:
        where = variant.scene()
        run.load.do("hold", where, keep=True, count=16)
        before = run.proxy.cpu()
        report = run.load.do(what, where, keep=True, streams=16, seconds=run.seconds)
        rates.setdefault(name, []).append(report["per_second"] / GIB)
        return (run.proxy.cpu() - before) / report["bytes"] * GIB

    works = {
        "encrypted, to clients": ("fetch", CLIENT),
        "encrypted, to mail servers": ("store", RESUMED),
        "decrypted, from clients": ("store", CLIENT),
        "decrypted, from mail servers": ("fetch", RESUMED),
        "plain, to clients (splice)": ("fetch", PLAIN),
        "plain, to mail servers (splice)": ("store", PLAIN),
    }
    found = run.in_turns({name: partial(cpu, what, variant, name) for name, (what, variant) in works.items()})
    for name, values in found.items():
        yield Row(f"CPU per GiB {name}", "s", values)
        yield Row(f"relayed {name}", "GiB/s", rates[name][1:])
    for word, client, upstream in (
        ("encryption", "encrypted, to clients", "encrypted, to mail servers"),
        ("decryption", "decrypted, from clients", "decrypted, from mail servers"),
    ):
        ratios = [ours / theirs for ours, theirs in zip(found[upstream], found[client], strict=True)]
        yield Row(f"CPU per GiB, {word}: mail servers / clients", "", ratios, "<= 1.10")


MEASURES: Final = (logins, resumption, bulk)


@contextmanager
def running(options: argparse.Namespace) -> Iterator[Run]:
    """Start servers, clients and the proxy."""
    limit = raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        _certificate(folder)
        servers = "\n".join(variant.server(folder) for variant in VARIANTS)
        conf = (
            f"worker_processes 1;\nworker_rlimit_nofile {limit};\nerror_log stderr error;\n"
            f"events {{ worker_connections 40000; }}\nmail {{\n{servers}\n}}\n"
        )
        ports = (_AUTH, _IMAP, *_STUBS)
        commands = (
            ("benchmarks.stub_servers", *map(str, ports)),
            (
                "benchmarks.tls_stub_servers",
                str(_TLS_AUTH),
                str(_TLS_IMAP),
                f"{folder}/tls.crt",
                f"{folder}/tls.key",
            ),
        )
        for (module, *words), port in zip(commands, (_IMAP, _TLS_IMAP), strict=True):
            process = pinned(LOAD_CPU, sys.executable, "-m", module, *words)
            stack.callback(stop, process)
            wait_for(port, process)
        load = LoadProcess()
        stack.callback(load.stop)
        proxy = start_with_conf(folder, options.python, conf, VARIANTS[-1].port)
        stack.callback(proxy.stop)
        yield Run(load, proxy, options.rounds, options.seconds, options.clients)


def _certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=mail.example.com"]
    command += ["-addext", "subjectAltName=DNS:mail.example.com", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*command, *files], check=True, capture_output=True)


def page(
    found: Sequence[tuple[str, Sequence[Row]]], options: argparse.Namespace, load: Sequence[float]
) -> str:
    """Return the page of results."""
    command = f"python -m benchmarks.upstream_tls --rounds {options.rounds} --seconds {options.seconds:g}"
    moment = datetime.datetime.now(datetime.UTC)
    lines = [
        *("# TLS to mail servers", "", f"Taken {moment:%Y-%m-%d %H:%M} UTC by", ""),
        *(f"    {command} --clients {options.clients}", ""),
        f"on {os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{ssl.OPENSSL_VERSION}; load average before {' '.join(f'{each:.2f}' for each in load)}.",
        *("", _METHOD),
    ]
    for name, rows in found:
        head = ["| work | unit | median | min | max | target |", "|---|---|---|---|---|---|"]
        lines += ["", f"## {name}", "", *head]
        for row in rows:
            figures = f"**{row.median:.2f}** | {min(row.values):.2f} | {max(row.values):.2f}"
            lines.append(f"| {row.work} | {row.unit} | {figures} | {row.target} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream_tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--clients", type=int, default=32, help="number of clients that log in repeatedly")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the proxy's interpreter, with its dependencies",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(argv)
    load = os.getloadavg()
    found: list[tuple[str, list[Row]]] = []
    with running(options) as run:
        for measure in MEASURES:
            print(f"\n{measure.__name__}: {(measure.__doc__ or '').strip()}", flush=True)
            rows = []
            for row in measure(run):
                rows.append(row)
                print(f"  {row.line()}", flush=True)
            found.append((measure.__name__, rows))
    if options.write:
        PAGE.write_text(page(found, options, load))
        print(f"\nwritten to {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
