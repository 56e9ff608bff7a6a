# SPDX-License-Identifier: Apache-2.0
"""The page of results, ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks import dovecot
from benchmarks.processes import ALL
from benchmarks.rows import LOAD_LIMIT, MARK, Row, absent_cells, columns_of, table

PAGE: Final = Path(__file__).parent / "RESULTS.md"
_METHOD: Final = f"""\
Proxies run on processor 0; clients, upstreams and the authentication service (the load) on processor 1. All
take turns in every round. nginx and the proxy run the same configuration; the proxy has its metrics and its
session log on, nginx logs errors only. Dovecot is its login proxy in the mode for high performance
(`service_count = 0`), without logs; it accepts any password by a static `passdb`, so it sends no request to
the authentication service and needs one connection less per login. HAProxy relays TCP (and ends TLS) with
`splice`, without a login of its own: the floor for relaying.

CPU is from `/proc/PID/task/*/schedstat`, memory is `Pss` from `/proc/PID/smaps_rollup`: of the workers of
nginx, HAProxy and the proxy, and of all processes of Dovecot (login, auth, anvil and others take part in each
login). A ratio is the proxy's value divided by the other's in the same round; the tables have medians. Less
is better, except for rates per second.

*Busy* is the share of processor 0 that the proxy used, and the share of processor 1 that the load used.
`{MARK}` marks a load above {LOAD_LIMIT:.0%}: then events arrive in groups, which saves wake-ups, and saves
most for a program whose wake-ups cost most. `paced` and `open` have lower loads. Full handshakes of TLS 1.3
are made by a client that verifies nothing (`benchmarks/light_tls.py`): it costs less than half of one with
OpenSSL."""

Found = Sequence[tuple[str, str, Sequence[Row]]]
"""Name, description and rows of each measurement."""


def page(
    found: Found,
    options: argparse.Namespace,
    load: tuple[float, float, float],
    minutes: float,
    missing: Mapping[str, str],
) -> str:
    """Return the page."""
    lines = ["# Results", "", *_circumstances(options, load, minutes, missing), "", _METHOD]
    for name, about, rows in found:
        columns = _columns(rows, missing)
        lines += ["", f"## {name}", "", about, ""]
        lines += table(rows, columns, absent_cells(missing))
    return "\n".join(lines) + "\n"


def _columns(rows: Sequence[Row], missing: Mapping[str, str]) -> list[str]:
    columns = columns_of(rows, missing)
    return [name for name in ALL if name in columns] or columns


def _circumstances(
    options: argparse.Namespace,
    load: tuple[float, float, float],
    minutes: float,
    missing: Mapping[str, str],
) -> list[str]:
    now = datetime.datetime.now(datetime.UTC)
    names = "".join(f"{name} " for name in options.names)
    pace = f"--rounds {options.rounds} --seconds {options.seconds:g} --clients {options.clients}"
    return [
        f"Taken {now:%Y-%m-%d %H:%M} UTC at commit {commit()}, in {minutes:.0f} minutes, by",
        "",
        f"    python -m benchmarks {names}{pace}{python_option(options.python)}",
        "",
        "| | |",
        "|---|---|",
        *machine(load),
        *versions(missing),
        *pythons(options.python),
    ]


def machine(load: tuple[float, float, float]) -> list[str]:
    """Return the rows of a table about the machine."""
    return [
        f"| machine | {os.cpu_count()} processors, {_processor()}; Linux {platform.release()} |",
        f"| load average before | {load[0]:.2f} {load[1]:.2f} {load[2]:.2f} |",
        f"| clients' TLS | {ssl.OPENSSL_VERSION} |",
    ]


def versions(missing: Mapping[str, str]) -> list[str]:
    """Return the rows of a table about the programs that are compared with."""
    commands = {
        "nginx": ("nginx", "-v"),
        "dovecot": (dovecot.PROGRAM, "--version"),
        "haproxy": ("haproxy", "-v"),
    }
    how = {
        "nginx": "one worker, default buffers",
        "dovecot": "one login process per protocol",
        "haproxy": "one thread",
    }
    rows = []
    for name, words in commands.items():
        about = missing.get(name) or f"{_output(*words).removeprefix('nginx version: ')}; {how[name]}"
        rows.append(f"| {name} | {' '.join(about.split())} |")
    return rows


def pythons(python: str) -> list[str]:
    """Return the rows of a table about the interpreters of the proxy and of the load."""
    named = (("proxy", python), ("load", sys.executable))
    return [f"| the {name}'s Python | {_output(each, '-c', _ABOUT_PYTHON)} |" for name, each in named]


def python_option(python: str) -> str:
    """Return how another interpreter for the proxy is given on the command line, without its folder."""
    return "" if python == sys.executable else f" --python {Path(python).name}"


def commit() -> str:
    """Return the commit that is measured."""
    return _output("git", "-C", str(PAGE.parent), "rev-parse", "--short", "HEAD") or "unknown"


def _output(*words: str) -> str:
    """Return the first line that a program prints."""
    with suppress(OSError):
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        return (ran.stdout or ran.stderr).strip().partition("\n")[0]
    return ""


_ABOUT_PYTHON: Final = """
import platform, ssl
python = (platform.python_version(), *platform.python_build(), platform.python_compiler())
print(*python, ssl.OPENSSL_VERSION, sep=", ")
"""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
