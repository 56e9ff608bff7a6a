# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [NAME ...]``: measures, prints, and optionally writes the page of results."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from benchmarks import felt
from benchmarks.by_name import BY_NAME
from benchmarks.measurements import STANDARD, Measure
from benchmarks.processes import MissingProgram, bench
from benchmarks.results_page import PAGE, page
from benchmarks.rows import CLIENTS, Pace, Row, line
from benchmarks.siege import siege

MEASURES: dict[str, Measure] = {**STANDARD, "siege": siege, **BY_NAME}
_STANDARD = (*STANDARD, "siege")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named measurements, or the standard ones."""
    options = _options(argv)
    started = time.monotonic()
    try:
        if options.names == ["felt"]:
            written = felt.run(options.python, is_written=options.write)
        else:
            written = _standard(options)
    except MissingProgram as missing:
        print(missing, file=sys.stderr)
        return 2
    if written:
        print(f"\nwritten to {written}, after {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def _standard(options: argparse.Namespace) -> str:
    found: list[tuple[str, str, list[Row]]] = []
    started, load = time.monotonic(), os.getloadavg()
    with bench(options.python) as run:
        for name in options.names or _STANDARD:
            about = " ".join((MEASURES[name].__doc__ or "").split())
            print(f"\n{name}: {about}", flush=True)
            rows = []
            for row in MEASURES[name](run, Pace(options.rounds, options.seconds, options.clients)):
                rows.append(row)
                print(f"  {line(row)}", flush=True)
            found.append((name, about, rows))
        text = page(found, options, load, (time.monotonic() - started) / 60, run.missing)
    if not options.write:
        return ""
    PAGE.write_text(text)
    return str(PAGE)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Without a name: {', '.join(_STANDARD)}.  Only by name: {', '.join(BY_NAME)}, and felt,"
        " alone: the table of docs/performance.md.",
    )
    names = [*MEASURES, "felt"]
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *names], help=", ".join(names))
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds after the warm-up; each measures all proxies"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument(
        "--clients",
        type=int,
        default=CLIENTS,
        help="number of clients that log in repeatedly (logins, price)",
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the proxy's interpreter, with its dependencies",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}, or the table of felt")
    options = parser.parse_args(argv)
    if "felt" in options.names and len(options.names) > 1:
        parser.error("felt is measured alone")
    return options


if __name__ == "__main__":
    sys.exit(main())
