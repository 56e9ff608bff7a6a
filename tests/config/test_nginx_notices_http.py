# SPDX-License-Identifier: Apache-2.0
"""An authentication service in the ``http {}`` block is not converted, which is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.nginx.convert import parse_nginx


def notices_of(http: str, service: str, source: str = "n.conf") -> list[str]:
    text = f"http {{\n{http}\n}}\nmail {{\nauth_http {service};\nserver {{ listen 143; }}\n}}\n"
    found = parse_nginx(text, source=source).notices
    return [str(notice) for notice in found if "auth_http" in notice.reason]


@pytest.mark.parametrize(
    ("listen", "service"),
    [
        ("listen 9000;", "localhost:9000/auth"),
        ("listen 9000;", "http://127.0.0.1:9000/auth"),
        ("listen *:9000;", "127.0.0.1:9000"),
        ("listen [::]:9000;", "[::1]:9000"),
        ("listen 127.0.0.1:9000;", "localhost:9000/auth"),
        ("listen localhost:9000;", "127.0.0.1:9000/auth"),
        ("listen 10.0.0.1:9000;", "10.0.0.1:9000/auth"),
        ("listen 80;", "localhost/auth.php"),
        ("listen 127.0.0.1;", "localhost/auth.php"),
        ("", "localhost/auth.php"),
        ("listen 443 ssl;", "https://localhost/auth.php"),
        ("listen unix:/run/auth.sock;", "unix:/run/auth.sock:/auth"),
        ("listen 9000; server_name auth.example.com;", "auth.example.com:9000/auth"),
    ],
)
def test_auth_service_in_http_block_gets_a_notice(listen: str, service: str) -> None:
    assert notices_of(f"server {{ {listen} location /auth {{ }} }}", service) == [
        f'n.conf:5: "auth_http" {service} is served by http {{}} of this configuration (n.conf:2), which '
        "the proxy does not run: keep an nginx for it, or move the service elsewhere"
    ]


@pytest.mark.parametrize(
    ("http", "service"),
    [
        ("server { listen 9001; }", "localhost:9000/auth"),
        ("server { listen 10.0.0.1:9000; }", "localhost:9000/auth"),
        ("server { listen 9000; }", "auth.mail.svc:9000/auth"),
        ("server { listen unix:/run/other.sock; }", "unix:/run/auth.sock"),
        ("upstream a { server 127.0.0.1:9000; }", "localhost:9000/auth"),
        ("server { listen nonsense:; } server; listen 9000;", "localhost:9000/auth"),
        ("include nowhere; server { include nowhere; listen 9001; }", "localhost:9000/auth"),
    ],
)
def test_other_auth_service_gets_no_notice(http: str, service: str) -> None:
    assert notices_of(http, service) == []


def test_auth_service_in_included_file_gets_a_notice(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "auth.conf").write_text("\nserver { listen 9000; }")
    (notice,) = notices_of("include sites/*;", "localhost:9000/auth", str(tmp_path / "nginx.conf"))
    assert f"http {{}} of this configuration ({tmp_path}/sites/auth.conf:2)" in notice
