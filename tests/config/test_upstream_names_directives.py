# SPDX-License-Identifier: Apache-2.0
"""``auth_http_server_names`` and ``auth_http_server_networks``."""

from __future__ import annotations

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load

NGINX = """
events {{}}
mail {{
    auth_http localhost:9000/auth;
    {mail}
    server {{ listen 143; protocol imap; {server} }}
    server {{ listen 110; protocol pop3; }}
}}
"""


def loaded(mail: str = "", server: str = "") -> list[tuple[bool, tuple[str, ...]]]:
    """Load an ``nginx.conf``, and return the two directives of each server."""
    config = load(
        NGINX.format(mail=mail, server=server).encode(), source="nginx.conf", hostname="mail.example"
    ).config
    return [(each.auth_http_server_names, each.auth_http_server_networks) for each in config.servers]


def test_names_are_off_and_no_network_is_allowed_by_default() -> None:
    assert loaded() == [(False, ()), (False, ())]


def test_directives_are_inherited_and_replaced() -> None:
    mail = "auth_http_server_names on; auth_http_server_networks 127.0.0.0/8 ::1;"
    server = "auth_http_server_networks fe80::/64;"
    assert loaded(mail, server) == [(True, ("fe80::/64",)), (True, ("127.0.0.0/8", "::1/128"))]


@pytest.mark.parametrize(
    ("written", "read"),
    [("10.1.2.3/8", "10.0.0.0/8"), ("192.0.2.1", "192.0.2.1/32"), ("[2001:db8::1]", "2001:db8::1/128")],
)
def test_networks_are_written_as_addresses_or_ranges(written: str, read: str) -> None:
    assert loaded(f"auth_http_server_networks {written};")[0] == (False, (read,))


@pytest.mark.parametrize("written", ["localhost", "unix:", "127.0.0.0/33", "127.0.0", "::1%lo", "1.2.3.4/a"])
def test_anything_else_is_no_network(written: str) -> None:
    with pytest.raises(ConfigError, match="is neither an address nor a CIDR range"):
        loaded(f"auth_http_server_networks {written};")
