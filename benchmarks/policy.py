# SPDX-License-Identifier: Apache-2.0
"""The cost of a policy server: CPU of the proxy per login, with and without ``auth_policy_server``.

    python -m benchmarks.policy [--rounds N] [--seconds S] [--clients N]

``benchmarks/POLICY.md`` has the results.  ``python -m benchmarks.policy stub PORT`` is the policy server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
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

_AUTH, _IMAP, _POLICY = (PORTS.base + 90 + index for index in range(3))
_STUBS: Final = tuple(PORTS.base + 93 + index for index in range(3))
_ANSWER: Final = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"status":0,"msg":""}'
VARIANTS: Final[Mapping[str, str]] = {
    "without a policy server": "",
    "log_password_fingerprint": "log_password_fingerprint on;",
    "one question before the check": "check_after=off report=off",
    "two questions": "report=off",
    "two questions and a report": "report=on",
    "a report": "check_before=off check_after=off",
}
"""Parameters, or a directive, of each listener."""


def _port(name: str) -> int:
    return PORTS.proxy("mailproxy", "imap") + list(VARIANTS).index(name)


def _server(name: str, nonce: Path) -> str:
    setting = VARIANTS[name]
    if setting and not setting.endswith(";"):
        setting = f"auth_policy_server http://127.0.0.1:{_POLICY}/ nonce_file={nonce} {setting};"
    listen = f"listen 127.0.0.1:{_port(name)}; protocol imap; auth_http 127.0.0.1:{_AUTH}/auth;"
    return f"server {{ {listen} {setting} }}"


def measure(options: argparse.Namespace) -> None:
    """Print the median of each variant, and its difference from the first."""
    limit = raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-bench-") as name, ExitStack() as stack:
        nonce = Path(name) / "nonce"
        nonce.write_text("a nonce\n")
        servers = "\n".join(_server(variant, nonce) for variant in VARIANTS)
        conf = (
            f"worker_processes 1;\nworker_rlimit_nofile {limit};\nerror_log stderr error;\n"
            f"events {{ worker_connections 40000; }}\nmail {{\n{servers}\n}}\n"
        )
        stubs = map(str, (_AUTH, _IMAP, *_STUBS))
        for port, words in (
            (_IMAP, ("benchmarks.stub_servers", *stubs)),
            (_POLICY, ("benchmarks.policy", "stub", str(_POLICY))),
        ):
            process = pinned(LOAD_CPU, sys.executable, "-m", *words)
            stack.callback(stop, process)
            wait_for(port, process)
        load = LoadProcess()
        stack.callback(load.stop)
        proxy = start_with_conf(Path(name), sys.executable, conf, _port(list(VARIANTS)[-1]))
        stack.callback(proxy.stop)
        _print(_in_turns(proxy, load, options))


def _in_turns(proxy: Proxy, load: LoadProcess, options: argparse.Namespace) -> dict[str, list[float]]:
    """CPU microseconds per login of each round; a first round does not count."""

    def cpu(name: str) -> float:
        before = proxy.cpu()
        scene = Scene("imap", _port(name))
        report = load.do("saturate", scene, conns=options.clients, seconds=options.seconds)
        return (proxy.cpu() - before) / max(report["done"], 1) * 1e6

    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds + 1):
        for name, values in found.items():
            value = cpu(name)
            if number:
                values.append(value)
    return found


def _print(found: Mapping[str, Sequence[float]]) -> None:
    first = next(iter(found.values()))
    print("| Login | CPU, µs | min | max | more |")
    print("|---|---|---|---|---|")
    for name, values in found.items():
        more = statistics.median(ours - base for ours, base in zip(values, first, strict=True))
        median = statistics.median(values)
        print(f"| {name} | {median:.0f} | {min(values):.0f} | {max(values):.0f} | {more:+.0f} |")


async def serve(port: int) -> None:
    """Allow everything."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                writer.write(_ANSWER)

    server = await asyncio.start_server(client, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or be the policy server."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["stub"]:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(int(words[1])))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--clients", type=int, default=32, help="number of clients that log in repeatedly")
    measure(parser.parse_args(words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
