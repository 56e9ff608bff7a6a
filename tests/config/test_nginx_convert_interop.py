# SPDX-License-Identifier: Apache-2.0
"""nginx accepts and rejects the same lines; differences are listed here."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.nginx.convert import parse_nginx
from support.parity.compared_programs import Nginx, require_nginx

pytestmark = pytest.mark.interop

LINES = """
timeout 60s; | timeout 1m30; | timeout 1m 30s; | timeout '1m 30s'; | timeout '10 20'; | timeout '10 s';
timeout 1m1h; | timeout 1.5s; | timeout -1; | timeout 1S; | timeout ''; | timeout 1500ms; | timeout 1M;
timeout 1w2d; | timeout 1s5; | timeout '1s 5'; | timeout 0; | timeout s; | timeout '5 ';
timeout '1m  30'; | ssl_session_timeout 1M; | ssl_session_timeout 1y; | ssl_session_timeout 500ms;
ssl_session_timeout 1M1y; | resolver 127.0.0.1 valid=1y; | resolver 127.0.0.1 valid=500ms;
resolver 127.0.0.1 [::1]:5353; | resolver off x; | resolver valid=5; | resolver 127.0.0.1 ipv6=maybe;
resolver 127.0.0.1:0; | resolver ::1; | resolver; | proxy_buffer 4k; | proxy_buffer 4K;
proxy_buffer 1g; | proxy_buffer -1; | proxy_buffer ''; | proxy_buffer 0x10; | proxy_buffer 1.5k;
proxy_buffer 10m; | proxy_buffer 4kk; | proxy_buffer k; | xclient on; | xclient OFF; | xclient yes;
xclient 1; | xclient; | max_errors 007; | max_errors -5; | max_errors 5k; | max_errors; | max_errors 5 6;
imap_auth plain; | imap_auth PLAIN login; | imap_auth apop; | imap_auth; | pop3_auth login;
imap_auth plain plain; | smtp_auth none login; | ssl_protocols TLSv1.9; | starttls ONLY;
starttls maybe; | auth_http unix:/tmp/x; | auth_http unix:/x:/u; | auth_http HTTP://127.0.0.1/;
auth_http [::1]:9; | auth_http [::1; | auth_http 127.0.0.1?x; | auth_http ::1; | auth_http :9;
auth_http ''; | auth_http 127.0.0.1:0; | set_real_ip_from unix:; | set_real_ip_from 10.1.2.3/8;
set_real_ip_from 10.0.0.0/33; | set_real_ip_from ''; | set_real_ip_from 2001:db8::/32;
set_real_ip_from 10.0.0.0/; | auth_http_header a; | auth_http_header a ""; | ssl_session_cache off;
ssl_session_cache none; | ssl_session_cache builtin:5; | ssl_session_cache builtin:x;
ssl_session_cache shared:a:1m; | ssl_session_cache shared:a; | ssl_session_cache shared:a:16k;
ssl_session_cache builtin shared:b:1m; | imap_capabilities "a b" c; | imap_capabilities;
server_name a b; | server_name ""; | proxy on; | protocol imap; | foo; | listen 5;
timeout 5s; timeout 6s; | timeout 5s } | timeout 5s | error_log stderr loud; | error_log;
auth_http a.invalid:0; | ssl_verify_client optional; | ssl on; | "timeout" 5s; | timeout "5s"
"""
LISTEN = """
unix:/NOWHERE ssl | 10143 | *:10143 | 127.0.0.1:10143 proxy_protocol | localhost:10143
[::1]:10143 ipv6only=off | 127.0.0.1:10143 so_keepalive=30m::10 | 127.0.0.1:10143 so_keepalive=::
127.0.0.1:10143 so_keepalive=1:2:3:4 | 127.0.0.1:10143 so_keepalive=10 | 127.0.0.1:10143 so_keepalive=:5s
127.0.0.1:10143 so_keepalive=500ms:: | 127.0.0.1:10143 backlog=0 | 127.0.0.1:10143 backlog=5 backlog=6
127.0.0.1:10143 reuseport | 127.0.0.1:10143 ssl=on | 127.0.0.1:10143 ipv6only=ON
127.0.0.1:10143 rcvbuf=4k sndbuf=1m bind | 10143-10145 | 10145-10143 | [::1 | :10143 | 0 | 65536
127.0.0.1:x | a/b:10143
"""
# Accepted only by nginx.
NGINX_ALONE = """
timeout m5; | timeout ' 5'; | proxy_buffer 127; | ssl_session_cache off builtin; | imap_capabilities "a\\nb";
"""
LISTEN_NGINX_ALONE = "127.0.0.1 | 127...1:10143 | 127.0.0.01:10143"
# Accepted only by mailproxy: extensions, and names that are not looked up when the file is read.
OURS_ALONE = (
    "auth_http https://127.0.0.1/; | auth_http a.invalid; | resolver ns.invalid; | set_real_ip_from [::1];"
)


def _cells(table: str) -> list[str]:
    return [cell.strip() for cell in table.strip().replace("\n", "|").split("|")]


def _server(listen: str, folder: Path) -> str:
    return f"server {{ protocol smtp; listen {listen.replace('/NOWHERE', f'{folder}/s.sock')}; }}"


@pytest.fixture(scope="module")
def nginx() -> Nginx:
    return require_nginx()


def nginx_accepts(nginx: Nginx, mail: str, folder: Path) -> bool:
    file = folder / "nginx.conf"
    around = f"{nginx.load}pid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
    file.write_text(f"{around}mail {{\nauth_http 127.0.0.1:9;\n{mail}\n}}\n")
    command = [nginx.path, "-t", "-c", str(file), "-p", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    # The rest is opening the sockets, which does not depend on the text.
    return "syntax is ok" in output


def mailproxy_accepts(mail: str) -> bool:
    with suppress(ConfigError):
        parse_nginx(f"events {{}}\nmail {{\nauth_http 127.0.0.1:9;\n{mail}\n}}\n")
        return True
    return False


def _both(nginx: Nginx, mail: str, folder: Path) -> tuple[bool, bool]:
    return nginx_accepts(nginx, mail, folder), mailproxy_accepts(mail)


@pytest.mark.parametrize("line", _cells(LINES))
def test_nginx_and_mailproxy_accept_the_same_lines(nginx: Nginx, line: str, tmp_path: Path) -> None:
    theirs, ours = _both(nginx, f"{line}\n{_server('unix:/NOWHERE', tmp_path)}", tmp_path)
    assert theirs is ours


@pytest.mark.parametrize("listen", _cells(LISTEN))
def test_nginx_and_mailproxy_accept_the_same_listen(nginx: Nginx, listen: str, tmp_path: Path) -> None:
    theirs, ours = _both(nginx, _server(listen, tmp_path), tmp_path)
    assert theirs is ours


@pytest.mark.parametrize("line", _cells(NGINX_ALONE))
def test_lines_accepted_by_nginx_only(nginx: Nginx, line: str, tmp_path: Path) -> None:
    assert _both(nginx, f"{line}\n{_server('unix:/NOWHERE', tmp_path)}", tmp_path) == (True, False)


@pytest.mark.parametrize("listen", _cells(LISTEN_NGINX_ALONE))
def test_listen_accepted_by_nginx_only(nginx: Nginx, listen: str, tmp_path: Path) -> None:
    assert _both(nginx, _server(listen, tmp_path), tmp_path) == (True, False)


@pytest.mark.parametrize("line", _cells(OURS_ALONE))
def test_lines_accepted_by_mailproxy_only(nginx: Nginx, line: str, tmp_path: Path) -> None:
    assert _both(nginx, f"{line}\n{_server('unix:/NOWHERE', tmp_path)}", tmp_path) == (False, True)


def test_nginx_reads_directive_after_missing_semicolon_as_capabilities(nginx: Nginx, tmp_path: Path) -> None:
    lines = f"imap_capabilities IMAP4rev1\nmax_errors 3;\n{_server('unix:/NOWHERE', tmp_path)}"
    assert _both(nginx, lines, tmp_path) == (True, False)
