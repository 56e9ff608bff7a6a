# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [NAME ...]``: measures, prints, and optionally writes the page of results."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurements import BOTH, CLIENTS, MEASURES, Pace, Row
from benchmarks.processes import MissingProgram, bench

PAGE = Path(__file__).parent / "RESULTS.md"
_METHOD = """\
Proxies run on processor 0; clients, upstreams and the authentication service on processor 1. nginx and the
proxy take turns in every round and run the same configuration; the proxy has its metrics and its session log
on, nginx logs errors only. CPU is the worker's own, from `/proc/PID/task/*/schedstat`; memory is `Pss` from
`/proc/PID/smaps_rollup`. A ratio is the proxy's value divided by nginx's in the same round; the tables have
medians.
Less is better, except for rates per second. *Busy* columns show the share of processor 0 that the proxy
used, and the share of processor 1 that the load (clients, upstreams, authentication service) used, both from
`schedstat`. If the load is at 100 % and the proxy is not, the load limits the rate; a proxy that is sometimes
idle wakes up more often for the same work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named measurements, or all."""
    options = _options(argv)
    names = options.names or list(MEASURES)
    found: list[tuple[str, list[Row]]] = []
    started, load = time.monotonic(), os.getloadavg()
    try:
        with bench(options.python) as run:
            for name in names:
                print(f"\n{name}: {(MEASURES[name].__doc__ or '').strip()}", flush=True)
                rows = []
                for row in MEASURES[name](run, Pace(options.rounds, options.seconds, options.clients)):
                    rows.append(row)
                    print(f"  {_line(row)}", flush=True)
                found.append((name, rows))
    except MissingProgram as missing:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    minutes = (time.monotonic() - started) / 60
    text = page(found, options, load, minutes)
    if options.write:
        PAGE.write_text(text)
        print(f"\nwritten to {PAGE}, after {minutes:.1f} minutes")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *MEASURES], help=", ".join(MEASURES))
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds after the warm-up; each measures both proxies"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument(
        "--clients",
        type=int,
        default=CLIENTS,
        help="number of clients that log in repeatedly (logins, price)",
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that the proxy runs on")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    return parser.parse_args(argv)


def _line(row: Row) -> str:
    ratio = f"{row.ratio:.2f} ({min(row.ratios):.2f}-{max(row.ratios):.2f})" if row.ratios else "-"
    target = f"  target {row.target}" if row.target else ""
    figures = f"nginx {row.nginx:9.2f}  mailproxy {row.mailproxy:9.2f} {row.unit:12}"
    busy = "".join(f"  {name} {_busy(row, name)} busy" for name in row.busy)
    return f"{row.work:58} {figures} ratio {ratio}{target}{busy}"


def _busy(row: Row, name: str) -> str:
    if name not in row.busy:
        return ""
    proxy, load = row.busy[name]
    return f"{proxy:.0%} / {load:.0%}"


def page(
    found: Sequence[tuple[str, Sequence[Row]]],
    options: argparse.Namespace,
    load: tuple[float, float, float],
    minutes: float,
) -> str:
    """Write the page of results."""
    lines = ["# Results", "", *_circumstances(options, load, minutes)]
    for name, rows in found:
        is_busy = any(row.busy for row in rows)
        lines += [
            "",
            f"## {name}",
            "",
            (MEASURES[name].__doc__ or "").strip(),
            "",
            "| work | unit | nginx | mailproxy | ratio: median | min | max | target |"
            + (" busy, nginx / load | busy, mailproxy / load |" if is_busy else ""),
            "|---|---|---|---|---|---|---|---|" + ("---|---|" if is_busy else ""),
        ]
        for row in rows:
            ratios = (
                f"**{row.ratio:.2f}** | {min(row.ratios):.2f} | {max(row.ratios):.2f}"
                if row.ratios
                else "- | - | -"
            )
            figures = f"{row.unit} | {row.nginx:.2f} | {row.mailproxy:.2f}"
            busy = "".join(f" {_busy(row, name)} |" for name in BOTH) if is_busy else ""
            lines.append(f"| {row.work} | {figures} | {ratios} | {row.target} |{busy}")
    return "\n".join(lines) + "\n"


def _circumstances(
    options: argparse.Namespace, load: tuple[float, float, float], minutes: float
) -> list[str]:
    now = datetime.datetime.now(datetime.UTC)
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip()
    python = subprocess.run(
        [options.python, "-c", _ABOUT_PYTHON], capture_output=True, text=True, check=True
    ).stdout.strip()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=PAGE.parent
    ).stdout.strip()
    names = "".join(f"{name} " for name in options.names)
    pace = f"--rounds {options.rounds} --seconds {options.seconds:g} --clients {options.clients}"
    return [
        f"Taken {now:%Y-%m-%d %H:%M} UTC at commit {commit or 'unknown'}, in {minutes:.0f} minutes, by",
        "",
        f"    python -m benchmarks {names}{pace}",
        "",
        "| | |",
        "|---|---|",
        f"| machine | {os.cpu_count()} processors, {_processor()}; Linux {platform.release()} |",
        f"| load average before | {load[0]:.2f} {load[1]:.2f} {load[2]:.2f} |",
        f"| nginx | {nginx.removeprefix('nginx version: ')}, one worker, default buffers |",
        f"| the proxy's Python | {python} |",
        f"| clients' TLS | {ssl.OPENSSL_VERSION} |",
        "",
        _METHOD,
    ]


_ABOUT_PYTHON = """
import platform, ssl
python = (platform.python_version(), *platform.python_build(), platform.python_compiler())
print(*python, ssl.OPENSSL_VERSION, sep=", ")
"""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
