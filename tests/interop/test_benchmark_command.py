# SPDX-License-Identifier: Apache-2.0
"""The benchmark command measures all proxies, and prints its results; their values are not tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.needs import find_program
from support.parity.compared_programs import require_nginx

ROOT: Final = Path(__file__).parents[2]
_FIGURES: Final = re.compile(r"(nginx|dovecot|haproxy|mailproxy) +([0-9.]+)(?= )(?! /)")
_RATIO: Final = re.compile(r" to nginx ([0-9.]+)")
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
_BUSY: Final = re.compile(r"nginx [0-9]+% / [0-9]+%!? busy  .*mailproxy [0-9]+% / [0-9]+%!? busy$")


def _bench(*words: str, environ: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    environment = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _measured(name: str, *words: str) -> list[str]:
    """Run one short measurement, and return its lines, each with the values of all proxies that run."""
    ran = _bench(name, "--rounds", "1", "--seconds", "0.05", *words)
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("  ")]
    for line in lines:
        ratio = _RATIO.search(line)
        assert ratio, line
        assert float(ratio[1]) > 0, line
        figures = {name: float(figure) for name, figure in _FIGURES.findall(line)}
        assert {"nginx", "mailproxy"} <= figures.keys(), line
        assert all(figure > 0 for figure in figures.values()), line
    return lines


def _dovecot_runs() -> bool:
    """Return whether all packages of Dovecot are installed that the benchmark needs."""
    return all(map(find_program, ("dovecot", "dovecot/imap", "dovecot/pop3", "dovecot/submission")))


def test_logins_benchmark_measures_every_login_method() -> None:
    require_nginx()
    lines = _measured("logins", "--clients", "4")
    assert [line[:60].strip().removeprefix("login, ") for line in lines] == _LOGINS
    assert all(_BUSY.search(line) for line in lines)
    if _dovecot_runs():
        assert sum(" dovecot " in line for line in lines) == len(_LOGINS) - 2


def test_exchanges_benchmark_measures_imap_and_imaps_through_relays_too() -> None:
    require_nginx()
    lines = _measured("exchanges")
    assert [line[:60].strip() for line in lines] == [
        "NOOP exchange, IMAP at 5,000/s",
        "NOOP exchange, IMAP",
        "NOOP exchange, IMAPS at 5,000/s",
        "NOOP exchange, IMAPS",
    ]
    if find_program("haproxy"):
        assert all(" haproxy " in line for line in lines)


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


def test_missing_programs_are_reported_with_their_packages_and_the_proxy_is_measured(tmp_path: Path) -> None:
    for name in ("openssl", "taskset"):
        found = find_program(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (tmp_path / name).symlink_to(found)
    ran = _bench("exchanges", "--rounds", "1", "--seconds", "0.05", environ={"PATH": str(tmp_path)})
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == [
        "nginx: not installed (Debian: nginx-core libnginx-mod-mail)",
        "dovecot: not installed (Debian: dovecot-imapd dovecot-pop3d dovecot-submissiond)",
        "haproxy: not installed (Debian: haproxy)",
    ]
    lines = [line for line in ran.stdout.splitlines() if line.startswith("  ")]
    assert len(lines) == 4
    assert all([name for name, _ in _FIGURES.findall(line)] == ["mailproxy"] for line in lines)


def test_missing_openssl_is_reported_with_its_package(tmp_path: Path) -> None:
    ran = _bench("exchanges", environ={"PATH": str(tmp_path)})
    assert (ran.returncode, ran.stderr) == (2, "not installed: openssl (Debian: openssl)\n")


def test_felt_is_measured_alone() -> None:
    ran = _bench("felt", "logins")
    assert ran.returncode == 2
    assert "felt is measured alone" in ran.stderr


@pytest.mark.parametrize("word", ["logouts", "--pace"])
def test_unknown_argument_is_rejected(word: str) -> None:
    ran = _bench(word)
    assert ran.returncode == 2
    assert word in ran.stderr
