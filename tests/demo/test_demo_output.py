# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: a headline, addresses, hints and commands, and no events unless requested."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mailproxy_demo.addresses import Address, find_addresses, format_addresses
from mailproxy_demo.auth_http_service import Account
from mailproxy_demo.demo import QuietLog, instructions
from mailproxy_demo.manifest_file import ManifestFile
from support.needs import Needs
from support.operator_bodies import body, server

ROOT: Final = Path(__file__).parents[2]
DEMO: Final = ROOT / "deploy/examples/demo.yaml"
ALL_SIX: Final = [
    Address("imap", "127.0.0.1:1143", "plain, STARTTLS"),
    Address("imap", "127.0.0.1:1993", "TLS"),
    Address("pop3", "127.0.0.1:1110", "plain, STARTTLS"),
    Address("pop3", "127.0.0.1:1995", "TLS"),
    Address("smtp", "127.0.0.1:1025", "plain, STARTTLS"),
    Address("smtp", "127.0.0.1:1465", "TLS"),
]


class Demo:
    """A running demo, with everything it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""

    async def until(self, line: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(90):
            while line not in self.text:
                read = await self.process.stdout.readline()
                assert read, self.text
                self.text += read.decode()

    async def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            rest, _ = await self.process.communicate()
        self.text += rest.decode()
        return int(self.process.returncode or 0)


async def start(*options: str) -> Demo:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return Demo(
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailproxy_operator", "local", "-f", str(DEMO), "--demo", *options,
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
    )  # fmt: skip


async def test_demo_explains_itself_and_its_commands_work(needs: Needs) -> None:
    """The commands are run as they are printed, in a shell."""
    needs("curl")
    demo = await start()
    await demo.until("Ctrl-C drains")
    commands = re.findall(r"^  ((?:curl|echo) .+)$", demo.text, re.MULTILINE)
    assert [shlex.split(one)[0] for one in commands] == ["curl", "curl", "echo", "curl", "curl"]
    outputs = [await asyncio.to_thread(run_in_shell, one) for one in commands]
    assert await demo.end() == 0, demo.text
    by_imap, by_pop3, _, metrics, config = outputs
    assert "Subject: Hello through the proxy" in by_imap
    assert "Subject: Hello through the proxy" in by_pop3
    logins = re.findall(r'^mailproxy_logins_total.+protocol="(\w+)".+ (\d+)', metrics, re.MULTILINE)
    assert {(protocol, float(count)) for protocol, count in logins if float(count)} >= {("imap", 1.0)}
    assert len(metrics.splitlines()) < 10
    assert '"hash"' in config
    first = demo.text.partition("\n")[0]
    assert first.startswith("MailProxy demo: starts a proxy for IMAP, POP3 and SMTP")
    assert len(re.findall(r"^  (?:IMAP|POP3|SMTP) .+(?:STARTTLS|TLS)$", demo.text, re.MULTILINE)) == 6
    assert not re.search(r"^(Normal|Warning) ", demo.text, re.MULTILINE)
    before, _, after = demo.text.partition("Ctrl-C drains")
    assert "proxy | " not in before
    assert after.count(" session ") >= 3


def run_in_shell(command: str) -> str:
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


async def test_events_are_printed_when_requested() -> None:
    demo = await start("--once", "--events")
    async with asyncio.timeout(90):
        output, _ = await demo.process.communicate()
    assert demo.process.returncode == 0, output.decode()
    assert re.search(r"^Normal Ready: ", output.decode(), re.MULTILINE)


def test_addresses_of_the_demo_are_all_six() -> None:
    manifest = ManifestFile(DEMO).read()
    assert manifest is not None
    assert find_addresses(manifest) == ALL_SIX


def test_address_is_where_clients_of_this_machine_connect() -> None:
    listen = [
        {"port": 143},
        {"address": "[::]", "port": 1145, "proxyProtocol": True},
        {"address": "unix:/tmp/x"},
    ]
    resource = body(
        portStrategy="HighPort",
        mail={"authHttp": "http://x/", "sslCertificate": [{"secretName": "a"}]},
        servers=[
            {"name": "imap", "protocol": "imap", "listen": listen},
            server("smtp", "smtp", 587, starttls="Only"),
        ],
    )
    assert [(one.text, one.security) for one in find_addresses(resource)] == [
        ("127.0.0.1:10143", "plain"),
        ("[::1]:11145", "plain"),
        ("unix:/tmp/x", "plain"),
        ("127.0.0.1:10587", "STARTTLS required"),
    ]
    assert list(format_addresses(find_addresses(resource)))[1].endswith("plain; expects a PROXY header")


def test_instructions_have_hints_on_lines_of_their_own() -> None:
    text = instructions(Account(), ALL_SIX, "http://127.0.0.1:9", file="demo.yaml")
    lines = text.splitlines()
    commands = [line for line in lines if re.match(r"  (curl|echo|openssl) ", line)]
    assert len(commands) == 6
    assert not any("#" in line for line in commands)
    assert all(lines[lines.index(line) - 1].endswith(("wonderland", ":")) for line in commands)
    assert "alice" in text
    assert "  curl -s http://127.0.0.1:9/metrics | grep '^mailproxy_logins_total.* [1-9]'" in lines


def test_instructions_have_commands_of_existing_listeners_only() -> None:
    text = instructions(Account(), ALL_SIX[:1], "http://x", file="f")
    assert "imap://127.0.0.1:1143" in text
    assert "smtp" not in text
    assert "pop3" not in text
    proxied = Address("imap", "127.0.0.1:1143", "plain", expects_proxy_header=True)
    assert "imap://" not in instructions(Account(), [proxied], "http://x", file="f")


@pytest.mark.parametrize(
    ("line", "is_shown"),
    [
        ("2026-11-29T20:00:00Z notice listening", False),
        ("2026-11-29T20:00:00Z info session 1", False),
        ("2026-11-29T20:00:00Z error bind_failed", True),
        ("Traceback (most recent call last):", True),
    ],
)
def test_log_of_normal_events_is_kept_back(line: str, is_shown: bool) -> None:
    shown: list[str] = []
    log = QuietLog(shown.append)
    log(line)
    assert shown == ([line] if is_shown else [])
    log.open(with_kept=True)
    assert shown == [line]
    log("2026-11-29T20:00:00Z info session 2")
    assert len(shown) == 2
