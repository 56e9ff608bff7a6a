# SPDX-License-Identifier: Apache-2.0
"""Hints about unknown and misplaced directives."""

from __future__ import annotations

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.nginx.convert import parse_nginx
from support.config_bodies import body, server

CONNECTING = (
    '"timeout" limits connecting to the mail server and logging in there; "proxy_timeout" ends sessions'
)


def problems_of(mail: str, server: str = "listen 143;", around: str = "") -> list[str]:
    text = f"{around}\nmail {{ auth_http a;\n{mail}\nserver {{ {server} }}\n}}\n"
    with pytest.raises(ConfigError) as raised:
        parse_nginx(text, source="n.conf")
    return list(map(str, raised.value.problems))


def notices_of(mail: str, server: str = "listen 143;", around: str = "") -> list[str]:
    text = f"{around}\nmail {{ auth_http a;\n{mail}\nserver {{ {server} }}\n}}\n"
    return list(map(str, parse_nginx(text, source="n.conf").notices))


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        # directives with a misleading name
        ("proxy_ctimeout 5s;", CONNECTING),
        ("connect_timeout 5s;", CONNECTING),
        ("proxy_read_timeout 5s;", '"proxy_timeout" limits how long a session may be silent'),
        ("proxy_send_timeout 5s;", '"proxy_timeout" limits how long a session may be silent'),
        (
            "keepalive_timeout 5s;",
            '"timeout" limits the time before login, "proxy_timeout" the silence after',
        ),
        ("proxy_protocol_timeout 5s;", '"timeout" limits the time before login'),
        ("ssl_handshake_timeout 5s;", '"timeout" limits the time before login'),
        # directives of earlier versions of nginx
        ("ssl on;", 'nginx removed it in 1.25.1: write "listen … ssl", such as "listen 993 ssl;"'),
        ("so_keepalive on;", 'write it as a parameter of listen: "listen … so_keepalive=on"'),
        ("imap { }", 'nginx has called this block "mail" since 0.5.15'),
        ("auth plain;", '"imap_auth", "pop3_auth" and "smtp_auth" name the ways to log in'),
        # directives of other modules
        ("proxy_pass 10.0.0.1:143;", "the authentication service names the mail server"),
        ("proxy_buffers 8 4k;", '"proxy_buffer" is the size of the buffer'),
        ("proxy_set_header X-Key k;", '"auth_http_header" adds a header'),
        ("real_ip_header proxy_protocol;", '"set_real_ip_from"'),
        ("access_log off;", "every session writes one line to the log"),
        ("client_max_body_size 50m;", '"smtp_capabilities" announces the largest message'),
        ("allow 10.0.0.0/8;", "refuse clients in the authentication service"),
        ("limit_conn_status 503;", "refuse clients in the authentication service"),
        ("ssl_stapling on;", "belongs to http {} and stream {}, not to mail {}"),
        ("proxy_ssl_key_log x;", "belongs to http {} and stream {}, not to mail {}"),
        ("tcp_nodelay on;", "belongs to http {} and stream {}, not to mail {}"),
        ("location / { }", "belongs to http {} and stream {}, not to mail {}"),
        ("gzip on;", "belongs to http {} and stream {}, not to mail {}"),
        ("fastcgi_pass x;", "belongs to http {} and stream {}, not to mail {}"),
        ("content_by_lua_block { }", "mail {} runs no scripts"),
        ("js_import x;", "mail {} runs no scripts"),
        # directives of forks
        ("sasl_service_name imap;", "Zimbra's nginx has it"),
        ("zm_lookup on;", "Zimbra's nginx has it"),
        ("imap_id name nginx;", "Zimbra's nginx has it"),
    ],
)
def test_directive_of_another_module_gets_a_hint(line: str, advice: str) -> None:
    (problem,) = problems_of(line)
    name = line.split(maxsplit=1)[0]
    assert problem.startswith(f'n.conf:3: unknown directive "{name}": ')
    assert advice in problem
    assert "did you mean" not in problem


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("lisen 143;", "listen"),
        ("protcol imap;", "protocol"),
        ("ssl_prefer_server_cipher on;", "ssl_prefer_server_ciphers"),
        ("ssl_cerificate_key k;", "ssl_certificate_key"),
        ("ssl_certificates c;", "ssl_certificate"),
        ("proxy_timout 5s;", "proxy_timeout"),
        ("auth_htp_timeout 5s;", "auth_http_timeout"),
        ("startls on;", "starttls"),
        ("imap_capability A;", "imap_capabilities"),
    ],
)
def test_misspelled_directive_gets_a_suggestion(line: str, meant: str) -> None:
    (problem,) = problems_of("", f"listen 143; {line}")
    assert problem.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "name", ["proxy_upload_timeout", "client_proxy_timeout", "auth_http_connect_timeout"]
)
def test_other_timeout_is_not_suggested(name: str) -> None:
    assert problems_of(f"{name} 5s;") == [f'n.conf:3: unknown directive "{name}"']


def test_ssl_off_is_dropped_with_a_notice() -> None:
    message = 'n.conf:3: "ssl off" is dropped: since nginx 1.25.1 TLS is a parameter, "listen … ssl"'
    assert notices_of("ssl off;") == [message]


@pytest.mark.parametrize("line", ["ssl;", "ssl maybe;", "ssl on off;"])
def test_ssl_on_is_an_error(line: str) -> None:
    assert "nginx removed it in 1.25.1" in problems_of(line)[0]


def test_misplaced_directive_names_allowed_context() -> None:
    assert problems_of("listen 143;") == [
        'n.conf:3: "listen" directive is not allowed here: it is allowed in server {}'
    ]
    assert problems_of("", around="auth_http a;") == [
        'n.conf:1: "auth_http" directive is not allowed here: it is allowed in mail {} or server {}'
    ]
    assert problems_of("worker_connections 5;") == [
        'n.conf:3: "worker_connections" directive is not allowed here: it is allowed in events {}'
    ]
    assert problems_of("worker_processes 5;") == [
        'n.conf:3: "worker_processes" directive is not allowed here: it is allowed outside of every block'
    ]
    assert problems_of("user www;") == [
        'n.conf:3: "user" directive is not allowed here: it is allowed outside of every block'
    ]


@pytest.mark.parametrize(
    ("field", "advice"),
    [
        ("proxyCtimeout", '"timeout" limits connecting to the mail server'),
        ("proxyReadTimeout", '"proxyTimeout" limits how long a session may be silent'),
        ("ssl", "write {port: 993, ssl: true} in listen"),
        ("proxyPass", "the authentication service names the mail server"),
    ],
)
def test_unknown_field_of_manifest_gets_the_same_hint(field: str, advice: str) -> None:
    for wrong in (body(mail={"authHttp": "a", field: "x"}), body(server(**{field: "x"}))):
        with pytest.raises(ConfigError) as raised:
            parse_manifest(wrong)
        (problem,) = raised.value.problems
        assert problem.reason.startswith("unknown field: ")
        assert advice in problem.reason
        assert "did you mean" not in problem.reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("reuseport", 'invalid parameter "reuseport": it belongs to http {} and stream {}, leave it out'),
        ("default_server",
         'invalid parameter "default_server": it belongs to http {} and stream {}, leave it out'),
        ("proxy_protcol", 'invalid parameter "proxy_protcol"; did you mean proxy_protocol?'),
        ("backlg=5", 'invalid parameter "backlg=5"; did you mean backlog?'),
        ("nonsense", 'invalid parameter "nonsense"'),
        ("so_keepalive=maybe", 'invalid so_keepalive value: "maybe": must be a time such as 30s, 5m or 1d, '
         "without milliseconds; a bare number is seconds"),
    ],
)  # fmt: skip
def test_invalid_listen_parameter_gets_a_hint(parameters: str, reason: str) -> None:
    assert problems_of("", f"listen 143 {parameters};") == [f'n.conf:4: "listen" directive: {reason}']


def test_mail_block_inside_http_is_reported() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_nginx("http {\nmail { auth_http a; server { listen 143; } }\n}", source="n.conf")
    message = "there is no mail block: the one in n.conf:2 is inside http {}; move it to the main context"
    assert str(raised.value) == f"n.conf: {message}"
