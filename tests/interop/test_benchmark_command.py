# SPDX-License-Identifier: Apache-2.0
"""The benchmark command measures nginx and the proxy, and prints its results; their values are not tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.parity.compared_programs import require_nginx

ROOT: Final = Path(__file__).parents[2]
_FIGURES: Final = re.compile(r"nginx +([0-9.]+)  mailproxy +([0-9.]+) .* ratio ([0-9.]+) \(")
_LOGINS: Final = [
    "IMAP plain, upstream with LITERAL+",
    "IMAP plain, upstream without LITERAL+",
    "POP3 plain",
    "SMTP plain, AUTH",
    "IMAP, STARTTLS",
    "IMAPS, TLS 1.3, ECDSA",
    "IMAPS, TLS 1.3, RSA 2048",
    "IMAPS, TLS 1.2, ECDSA",
    "IMAPS, TLS 1.3, resumed",
    "POP3S, TLS 1.3, ECDSA",
    "SMTPS, TLS 1.3, ECDSA",
]
_BUSY: Final = re.compile(r"nginx [0-9]+% / [0-9]+% busy  mailproxy [0-9]+% / [0-9]+% busy$")


def _bench(*words: str, environ: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    environment = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _measured(name: str, *words: str) -> list[str]:
    """Run one short measurement, and return its lines, each with the values of both proxies."""
    ran = _bench(name, "--rounds", "1", "--seconds", "0.05", *words)
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("  ")]
    for line in lines:
        figures = _FIGURES.search(line)
        assert figures, line
        assert all(float(figure) > 0 for figure in figures.groups()), line
    return lines


def test_logins_benchmark_measures_every_login_method() -> None:
    require_nginx()
    lines = _measured("logins", "--clients", "4")
    assert [line[:60].strip().removeprefix("login, ") for line in lines] == _LOGINS
    assert all(_BUSY.search(line) for line in lines)


def test_exchanges_benchmark_measures_imap_and_imaps() -> None:
    require_nginx()
    assert [line[:60].strip() for line in _measured("exchanges")] == [
        "NOOP exchange, IMAP",
        "NOOP exchange, IMAPS",
    ]


def test_upstream_tls_benchmark_measures_logins_resumption_and_bulk_data() -> None:
    command = [sys.executable, "-m", "benchmarks.upstream_tls", "--rounds", "1", "--seconds", "0.05"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [*command, "--clients", "4"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("  ")]
    figures = [float(line[64:74]) for line in lines]
    assert all(figure > 0 for figure in figures), ran.stdout
    assert sum(line.startswith("  login, ") for line in lines) == 6
    assert sum(line.startswith("  CPU per GiB ") for line in lines) == 6
    [resumed] = [line for line in lines if line.startswith("  resumed, of 200 handshakes at 50/s")]
    assert float(resumed[64:74]) > 90


def test_missing_nginx_is_reported_with_its_package(tmp_path: Path) -> None:
    ran = _bench("exchanges", environ={"PATH": str(tmp_path)})
    assert (ran.returncode, ran.stderr) == (
        2,
        "not installed: nginx, with its mail module (Debian: nginx-core libnginx-mod-mail)\n",
    )


@pytest.mark.parametrize("word", ["logouts", "--pace"])
def test_unknown_argument_is_rejected(word: str) -> None:
    ran = _bench(word)
    assert ran.returncode == 2
    assert word in ran.stderr
