# SPDX-License-Identifier: Apache-2.0
"""What nginx refuses when it reads its configuration, the proxy refuses too, and blames the same directive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.load import check_files, load
from support.parity.subjects import Nginx
from support.processes import PYTHONPATH

pytestmark = pytest.mark.interop

_SERVER: Final = "mail { auth_http 127.0.0.1:9; server { listen 127.0.0.1:10143; protocol imap;\n%s\n} }"
_MAIL: Final = "mail { auth_http 127.0.0.1:9; %s server { listen 127.0.0.1:10143; protocol imap; } }"
_LISTEN: Final = "mail { auth_http 127.0.0.1:9; server { listen %s; protocol imap; } }"
_PAIR: Final = "ssl_certificate '@server_cert@'; ssl_certificate_key '@server_key@';"

_LINE: Final = re.compile(r" in \S*nginx\.conf:([0-9]+)$", re.MULTILINE)

# The directive that is to be blamed, and what stands in a server.
IN_A_SERVER: Final = (
    ("timeout", "timeout 1x;"),
    ("timeout", "timeout 1m1h;"),
    ("timeout", "timeout;"),
    ("timeout", "timeout 1s 2s;"),
    ("timeout", "timeout 1s; timeout 2s;"),
    ("max_errors", "max_errors -1;"),
    ("max_errors", "max_errors five;"),
    ("resolver", "resolver valid=5s;"),
    ("resolver", "resolver 127.0.0.1 valid=x;"),
    ("resolver", "resolver 127.0.0.1 ipv6=maybe;"),
    ("resolver", "resolver 127.0.0.1; resolver 127.0.0.2;"),
    ("resolver_timeout", "resolver_timeout x;"),
    ("server_name", "server_name a b;"),
    ("protocol", "protocol lmtp;"),
    ("auth_http", "auth_http :9000;"),
    ("auth_http", "auth_http 127.0.0.1:99999;"),
    ("auth_http", "auth_http;"),
    ("auth_http", "auth_http unix:;"),
    ("auth_http_timeout", "auth_http_timeout 1y;"),
    ("auth_http_header", "auth_http_header X-Key;"),
    ("auth_http_header", "auth_http_header a b c;"),
    ("auth_http_pass_client_cert", "auth_http_pass_client_cert yes;"),
    ("imap_auth", "imap_auth apop;"),
    ("imap_auth", "imap_auth;"),
    ("imap_capabilities", "imap_capabilities;"),
    ("imap_client_buffer", "imap_client_buffer 4g;"),
    ("imap_client_buffer", "imap_client_buffer -1;"),
    ("pop3_auth", "pop3_auth login;"),
    ("pop3_auth", "pop3_auth none;"),
    ("smtp_auth", "smtp_auth apop;"),
    ("smtp_client_buffer", "smtp_client_buffer x;"),
    ("smtp_greeting_delay", "smtp_greeting_delay soon;"),
    ("proxy", "proxy maybe;"),
    ("proxy_buffer", "proxy_buffer 1.5k;"),
    ("proxy_timeout", "proxy_timeout 1S;"),
    ("proxy_pass_error_message", "proxy_pass_error_message 1;"),
    ("proxy_smtp_auth", "proxy_smtp_auth;"),
    ("proxy_protocol", "proxy_protocol v3;"),
    ("xclient", "xclient yes;"),
    ("xclient", "xclient on; xclient off;"),
    ("set_real_ip_from", "set_real_ip_from;"),
    ("set_real_ip_from", "set_real_ip_from 10.0.0.0/33;"),
    ("starttls", "starttls yes;"),
    ("ssl_certificate", "starttls on;"),
    ("ssl_certificate_key", "starttls on; ssl_certificate '@server_cert@';"),
    ("ssl_certificate", f"{_PAIR} ssl_certificate a b;"),
    ("ssl_protocols", "ssl_protocols TLSv2;"),
    ("ssl_prefer_server_ciphers", "ssl_prefer_server_ciphers maybe;"),
    ("ssl_session_cache", "ssl_session_cache shared;"),
    ("ssl_session_cache", "ssl_session_cache shared:a;"),
    ("ssl_session_cache", "ssl_session_cache shared:a:1k;"),
    ("ssl_session_cache", "ssl_session_cache a b c;"),
    ("ssl_session_timeout", "ssl_session_timeout 5ms;"),
    ("ssl_session_tickets", "ssl_session_tickets sometimes;"),
    ("ssl_verify_client", "ssl_verify_client maybe;"),
    ("ssl_verify_client", f"starttls on; {_PAIR} ssl_verify_client on;"),
    ("ssl_verify_depth", "ssl_verify_depth deep;"),
    ("ssl_conf_command", "ssl_conf_command Options;"),
    ("error_log", "error_log stderr loud;"),
    ("error_log", "error_log;"),
    ("listen", "listen 127.0.0.1:10143;"),
    ("server", "server { }"),
    ("worker_processes", "worker_processes 2;"),
    ("worker_connections", "worker_connections 5;"),
    ("events", "events { }"),
    ("ssl_stapling", "ssl_stapling on;"),
    ("timeuot", "timeuot 5s;"),
    ("location", "location / { }"),
)
LISTENERS: Final = (
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:port",
    "[::1",
    "[::zz]:143",
    ":143",
    "a/b:143",
    "unix:",
    "unix:/" + "x" * 200,
    "127.0.0.1:143 reuseport",
    "127.0.0.1:143 default_server",
    "127.0.0.1:143 ssl=on",
    "127.0.0.1:143 backlog=0",
    "127.0.0.1:143 backlog=-1",
    "127.0.0.1:143 rcvbuf=x",
    "127.0.0.1:143 sndbuf=1g",
    "[::1]:143 ipv6only=maybe",
    "127.0.0.1:143 so_keepalive=::",
    "127.0.0.1:143 so_keepalive=1:2:3:4",
    "127.0.0.1:143 so_keepalive=5ms::",
    "127.0.0.1:143 nonsense",
    "127.0.0.1:150-140",
)
# The word that is to be told, and the whole text.
WHOLE: Final = (
    ("auth_http", "mail { server { listen 143; } }"),
    ("listen", "mail { auth_http 127.0.0.1; server { protocol imap; } }"),
    ("protocol", "mail { auth_http 127.0.0.1; server { listen 127.0.0.1:10143; } }"),
    ("mail", "mail { } mail { }"),
    ("mail", "mail;"),
    ("mail", "mail x { }"),
    ("timeout", "timeout 5s; mail { }"),
    ("listen", "mail { listen 143; }"),
    ("duplicate", "mail { auth_http 127.0.0.1; server { listen 143; } server { listen *:143; } }"),
    ("duplicate", "mail { auth_http 127.0.0.1; server { listen 143; listen 0.0.0.0:143; } }"),
    ("timeout", "mail { timeout 5s }"),
    ("expecting", "mail { server { listen 143;"),
    ("unexpected", "mail { } }"),
    ("timeout", 'mail { timeout "5s"x; }'),
    ("expecting", 'mail { timeout "5s; }'),
    ("nowhere.conf", "include nowhere.conf; mail { }"),
    ("worker_processes", "worker_processes many; " + _LISTEN % "127.0.0.1:10143"),
    ("events", "events { } " + _LISTEN % "127.0.0.1:10143"),
    ("worker_shutdown_timeout", "worker_shutdown_timeout 1s; worker_shutdown_timeout 2s; mail { }"),
    ("worker_processes", "worker_processes 1; worker_processes 2; " + _LISTEN % "127.0.0.1:10143"),
)
ACCEPTED: Final = (
    _SERVER % "timeout '1m 30s'; max_errors 0; resolver off x y; resolver_timeout 0;",
    _SERVER % "xclient OFF; proxy_smtp_auth ON; starttls OFF;",
    _SERVER % "imap_auth PLAIN Login; pop3_auth apop; pop3_auth plain; smtp_auth none external;",
    _SERVER % "imap_capabilities 'A B' C; imap_capabilities D; smtp_capabilities 'SIZE 1';",
    _SERVER % "auth_http http://127.0.0.1:9000/x?y; auth_http unix:/tmp/s:/uri; auth_http [::1]:5;",
    _SERVER % "auth_http_header X '' ; auth_http_header 'Y' \"a b\";",
    _SERVER % "set_real_ip_from 10.1.2.3/8; set_real_ip_from unix:; set_real_ip_from 2001:db8::/32;",
    _SERVER % "ssl_verify_client on; ssl_certificate nowhere.pem; ssl_session_cache builtin:100 shared:a:1m;",
    _SERVER % "proxy on; proxy_protocol on; proxy_buffer 8k; proxy_timeout 1d12h; error_log /dev/null info;",
    _SERVER % "protocol pop3; protocol smtp;",
    _SERVER % f"starttls only; {_PAIR} ssl_protocols TLSv1.2 TLSv1.3; ssl_verify_depth 3;",
    _MAIL % "server_name a; timeout 5s; # timeout x;\n",
    _MAIL % "server { listen [::1]:10143 ipv6only=on; protocol smtp; }",
    _LISTEN
    % f"127.0.0.1:10143 ssl proxy_protocol backlog=5 rcvbuf=8k sndbuf=1m so_keepalive=30m::10; {_PAIR[:-1]}",
    _LISTEN % "localhost:10143",
    _LISTEN % "*:10143 bind backlog=1 backlog=2",
    _LISTEN % "10143-10145",
    "worker_processes auto; " + _LISTEN % "127.0.0.1:10143",
    "worker_shutdown_timeout 10s; " + _LISTEN % "127.0.0.1:10143",
    "mail { auth_http 127.0.0.1; server { listen 127.0.0.1:10993; protocol imap; timeout 1m30; } }",
)


class Judges:
    """nginx and the proxy, asked about the same text."""

    def __init__(self, nginx: Nginx, folder: Path, certificates: dict[str, str]) -> None:
        self._nginx, self._folder, self._certificates = nginx, folder, certificates

    def write(self, text: str) -> Path:
        """Write a configuration."""
        for name, path in self._certificates.items():
            text = text.replace(f"@{name}@", path)
        file = self._folder / "nginx.conf"
        file.write_text(f"{self._nginx.load}events {{ }}\npid {self._folder}/pid;\n{text}\n")
        return file

    def theirs(self, text: str) -> str:
        """What nginx says against it; empty if nothing."""
        command = [
            self._nginx.path,
            "-t",
            "-p",
            str(self._folder),
            "-e",
            "stderr",
            "-c",
            str(self.write(text)),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "NGINX"}
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return told.stderr if told.returncode else ""

    def ours(self, text: str) -> str:
        """What ``mailproxy check`` says against it."""
        file = self.write(text)
        try:
            config = load(file.read_bytes(), source=str(file), hostname="h").config
        except ConfigError as error:
            return "\n".join(map(str, error.problems))
        return "\n".join(map(str, check_files(config)))


@pytest.fixture(scope="module")
def judges(nginx: Nginx, folder: Path, certificates: dict[str, str]) -> Judges:
    return Judges(nginx, folder, certificates)


def _both_blame(judges: Judges, word: str, text: str) -> None:
    """Both refuse it; the proxy names the directive, and nginx does, or else the same line."""
    theirs, ours = judges.theirs(text), judges.ours(text)
    assert theirs
    assert word in ours
    line = _LINE.search(theirs)
    assert word in theirs or (line is not None and f"nginx.conf:{line[1]}:" in ours), (theirs, ours)


@pytest.mark.parametrize(("directive", "line"), IN_A_SERVER)
def test_both_refuse_a_line_of_a_server(directive: str, line: str, judges: Judges) -> None:
    _both_blame(judges, directive, _SERVER % line)


@pytest.mark.parametrize("listen", LISTENERS)
def test_both_refuse_a_listener(listen: str, judges: Judges) -> None:
    _both_blame(judges, "listen", _LISTEN % listen)


@pytest.mark.parametrize(("word", "text"), WHOLE)
def test_both_refuse_a_whole(word: str, text: str, judges: Judges) -> None:
    _both_blame(judges, word, text)


@pytest.mark.parametrize("text", ACCEPTED)
def test_both_accept(text: str, judges: Judges) -> None:
    assert judges.theirs(text) == ""
    assert judges.ours(text) == ""


def test_the_command_says_the_same(judges: Judges, folder: Path) -> None:
    file = judges.write(_SERVER % "timeout 1x;\nxclient yes;")
    told = subprocess.run(
        [sys.executable, "-m", "mailproxy", "check", "-f", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert told.returncode == 1
    assert "timeout" in told.stderr
    assert "xclient" in told.stderr
