# SPDX-License-Identifier: Apache-2.0
"""A whole proxy with many names on its ports, and ``openssl s_client -servername`` and ``-alpn``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.needs import Needs
from support.proxy_process import COMMAND, ProxyProcess, free_port, wait_until
from support.tls_authority import Authority, Issued

SECONDS = 60.0


class Names:
    """A proxy with three certificates on IMAP with TLS and STARTTLS, and three protocols on one port."""

    def __init__(self, folder: Path, needs: Needs) -> None:
        self.authority = Authority(folder)
        self.openssl = needs("openssl")
        self.issued = {
            name: self.authority.issue(f"CN={name}", names=[name]) for name in ("a.test", "b.test", "c.test")
        }
        self.imaps, self.imap, self.https, self.pop3s = (free_port() for _ in range(4))
        self.submissions = free_port()
        self.file = folder / "proxy.yaml"
        self.file.write_text(yaml.safe_dump(self.manifest()))

    def pair(self, name: str, **fields: Any) -> dict[str, Any]:
        files = self.issued[name].files
        return {"certificateFile": files.certificate, "keyFile": files.key, **fields}

    def manifest(self) -> dict[str, Any]:
        words = {"imap": "imap", "pop3": "pop3", "smtp": "smtp"}
        local = {"address": "127.0.0.1"}
        return {
            "apiVersion": "mailproxy.dev/v1alpha1",
            "kind": "MailProxy",
            "metadata": {"name": "edge"},
            "spec": {
                "mail": {
                    "authHttp": "http://127.0.0.1:1/",
                    "starttls": "Enabled",
                    "sslCertificate": [
                        self.pair("a.test"),
                        self.pair("b.test", serverNames=["b.test", "*.b.test"]),
                        self.pair("c.test"),
                    ],
                },
                "servers": [
                    {
                        "name": "imap",
                        "protocol": "imap",
                        "listen": [
                            {**local, "port": self.imaps, "ssl": True},
                            {**local, "port": self.imap},
                            {**local, "port": self.https, "ssl": True, "alpnServers": words},
                        ],
                    },
                    {
                        "name": "pop3",
                        "protocol": "pop3",
                        "listen": [{**local, "port": self.pop3s, "ssl": True}],
                    },
                    {
                        "name": "smtp",
                        "protocol": "smtp",
                        "serverName": "smtp.test",
                        "listen": [{**local, "port": self.submissions, "ssl": True}],
                    },
                ],
            },
        }

    def s_client(self, port: int, *options: str) -> str:
        """Everything that ``openssl s_client`` prints; it logs out at once."""
        result = subprocess.run(
            [
                self.openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", self.authority.file,
                "-ign_eof", "-crlf", *options,
            ],
            input="a LOGOUT\nQUIT\n", capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return result.stdout + result.stderr


@pytest.fixture
def names(tmp_path: Path, needs: Needs) -> Names:
    return Names(tmp_path, needs)


VERSIONS = ["-tls1_2", "-tls1_3"]


def test_openssl_gets_certificates_and_protocols_by_name_and_alpn(names: Names) -> None:
    with ProxyProcess(names.file, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        for version in VERSIONS:
            for name, subject in (
                ("a.test", "a.test"),
                ("b.test", "b.test"),
                ("B.Test", "b.test"),
                ("imap.b.test", "b.test"),
                ("c.test", "c.test"),
                ("other.test", "a.test"),
            ):
                output = names.s_client(names.imaps, "-servername", name, version)
                assert f"subject=CN = {subject}" in output.replace("CN=", "CN = "), (name, output)
                assert "* OK IMAP4 ready" in output
            output = names.s_client(names.imaps, "-noservername", version)
            assert "subject=CN = a.test" in output.replace("CN=", "CN = ")
            output = names.s_client(names.imap, "-starttls", "imap", "-servername", "c.test", version)
            assert "subject=CN = c.test" in output.replace("CN=", "CN = ")
            for word, greeting in (("imap", "* OK IMAP4"), ("pop3", "+OK POP3"), ("smtp", "220 smtp.test")):
                output = names.s_client(names.https, "-alpn", word, "-servername", "b.test", version)
                assert f"ALPN protocol: {word}" in output
                assert greeting in output
                assert "subject=CN = b.test" in output.replace("CN=", "CN = ")
            for options in (["-alpn", "h2,http/1.1"], []):
                output = names.s_client(names.https, *options, version)
                assert "alert number 120" in output
        assert proxy.config()["certificates"] == []


def test_certificate_that_does_not_load_is_reported_and_keeps_its_last_good_one(names: Names) -> None:
    broken: Issued = names.issued["b.test"]
    with ProxyProcess(names.file, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        good = Path(broken.files.key).read_bytes()
        Path(broken.files.key).write_bytes(b"no key\n")
        event = proxy.wait_for_event("certificate_not_used")
        assert event["level"] == "error"
        assert event["path"] == "spec.mail.sslCertificate[1]"
        (reported,) = wait_until(lambda: proxy.config()["certificates"])
        assert broken.files.certificate in reported
        assert reported.endswith("the last good one is used")
        for name in ("b.test", "c.test"):
            assert f"CN = {name}" in names.s_client(names.imaps, "-servername", name).replace("CN=", "CN = ")
        Path(broken.files.key).write_bytes(good)
        wait_until(lambda: not proxy.config()["certificates"])


def test_unusable_certificate_does_not_keep_a_proxy_from_starting(
    names: Names, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    Path(names.issued["c.test"].files.key).write_bytes(b"no key\n")
    with ProxyProcess(names.file, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        proxy.wait_for_event("certificate_not_used")
        assert "CN = a.test" in names.s_client(names.imaps, "-servername", "c.test").replace("CN=", "CN = ")
        assert "CN = b.test" in names.s_client(names.imaps, "-servername", "b.test").replace("CN=", "CN = ")
    checked = run_command("check", "-f", str(names.file))
    assert checked.returncode == 1
    assert "spec.mail.sslCertificate[2]: cannot load certificate" in checked.stderr


@pytest.fixture
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        import sys

        return subprocess.run(
            [sys.executable, "-m", "mailproxy", *arguments],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    return run
