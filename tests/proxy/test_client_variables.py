# SPDX-License-Identifier: Apache-2.0
"""Variables in ``auth_http_header`` (with ``auth_http_variables``) and ``proxy_forward``."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy.auth_http.request import RequestTemplate
from mailproxy.enums import Method
from mailproxy.protocols.client_variables import parse_value, render_value
from mailproxy.protocols.types import AuthRequest, Client, Credentials, ProxyAddresses, Secret, TlsInfo
from mailproxy_config.client_variables import VARIABLES, check_variables
from mailproxy_config.model import Protocol
from support import configs

CLIENT = Client(
    "192.0.2.1",
    4711,
    "198.51.100.7",
    993,
    tls=TlsInfo("TLSv1.3", "c", server_name=b"mail.example"),
    session_id="0f3a-1c",
)


def request(*headers: tuple[bytes, Secret | bytes], client: Client = CLIENT, **directives: Any) -> bytes:
    values: dict[str, Any] = {"auth_http_variables": True, **directives}
    template = RequestTemplate(configs.server(Protocol.IMAP, **values), headers, keep_alive=True)
    return template.render(AuthRequest(Credentials(Method.PLAIN, b"u", Secret(b"p")), 1, client))


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        (b"$remote_addr", b"192.0.2.1"),
        (b"$remote_port", b"4711"),
        (b"$server_addr:$server_port", b"198.51.100.7:993"),
        (b"${protocol}s", b"imaps"),
        (b"$ssl_server_name", b"mail.example"),
        (b"<$session_id>", b"<0f3a-1c>"),
        (b"no variable", b"no variable"),
        (b"5 $ and $5 and $Remote", b"5 $ and $5 and $Remote"),
        (b"100% $remote_port%d", b"100% 4711%d"),
    ],
)
def test_variables_are_replaced(value: bytes, rendered: bytes) -> None:
    assert b"\r\nX-Fact: " + rendered + b"\r\n\r\n" in request((b"X-Fact", value))


def test_headers_keep_their_order_behind_those_of_nginx() -> None:
    headers = ((b"A", b"1"), (b"Client-Port", b"$remote_port"), (b"B", b"2"))
    assert request(*headers).endswith(b"\r\nA: 1\r\nClient-Port: 4711\r\nB: 2\r\n\r\n")
    assert request(*headers).index(b"Auth-SSL-Cipher") < request(*headers).index(b"A: 1")


def test_variables_are_sent_literally_without_the_directive() -> None:
    headers = (b"Client-Port", b"$remote_port")
    assert b"Client-Port: $remote_port\r\n" in request(headers, auth_http_variables=False)


def test_value_from_a_secret_is_not_changed() -> None:
    headers = ((b"X-Key", Secret(b"pa$remote_port")), (b"X", b"$remote_port"))
    assert b"X-Key: pa$remote_port\r\nX: 4711\r\n" in request(*headers)


def test_unknown_variable_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r'auth_http_header X: "\$remote_user" is no variable; there are'):
        request((b"X", b"$remote_user"))


def test_line_breaks_of_sni_are_escaped() -> None:
    client = Client("192.0.2.1", 1, tls=TlsInfo("TLSv1.3", "c", server_name=b"a\r\nAuth-User: root"))
    rendered = request((b"X", b"$ssl_server_name"), client=client)
    assert b"X: a%0D%0AAuth-User: root\r\n\r\n" in rendered


def test_client_without_tls_has_an_empty_server_name() -> None:
    assert b"\r\nX: \r\n\r\n" in request((b"X", b"$ssl_server_name"), client=Client("192.0.2.1", 1))


def test_server_address_is_that_of_a_believed_proxy_header() -> None:
    client = Client("192.0.2.1", 1, "10.0.0.1", 143)
    client.proxied = ProxyAddresses(b"192.0.2.1", b"203.0.113.1", 1, 993)
    client.proxied_destination = ("203.0.113.1", 993)
    assert b"X: 203.0.113.1:993\r\n" in request((b"X", b"$server_addr:$server_port"), client=client)


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_has_a_value(name: str) -> None:
    assert render_value(parse_value(f"${name}".encode(), Protocol.IMAP), CLIENT)


def test_configuration_refuses_the_same_variables() -> None:
    check_variables(" ".join(f"${name} ${{{name}}}" for name in VARIABLES) + " $ $5 $Remote")
    with pytest.raises(ValueError, match=r'"\$remote_user" is no variable; there are \$protocol, '):
        check_variables("a${remote_user}")
