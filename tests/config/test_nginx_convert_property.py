# SPDX-License-Identifier: Apache-2.0
"""A converted ``nginx.conf`` has the same configuration as one that is loaded directly."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy_config.directives import (
    FOLDED_DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    by_name,
)
from mailproxy_config.load import load
from mailproxy_config.nginx.convert import parse_nginx, to_manifest_yaml
from mailproxy_config.rendered import config_hash
from support.configs import without_logs
from support.fuzz import examples

_MSEC: Final = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "1w", "2d"]),
        st.sampled_from(["", "3h"]),
        st.sampled_from(["4m", "05m"]),
        st.sampled_from(["", "6s", "7"]),
    ),
) | st.sampled_from(["0", "500ms", "1s5ms", "'1m 30s'", "60"])
_SEC: Final = st.sampled_from(["1", "5m", "1y", "2M", "1d12h", "'1h 5'"])
_BUFFER: Final = st.sampled_from(["128", "4k", "8K", "1m", "65536", "0004k"])
_FLAG: Final = st.sampled_from(["on", "off", "On", "OFF"])
_NUMBER: Final = st.sampled_from(["0", "1", "007", "2147483647"])
_PATH: Final = st.sampled_from(
    ["a.pem", "/etc/ssl/a.pem", "'my files/a.pem'", "../b", '"x;y{}"', "yes", "08"]
)
_WORDS: Final = st.lists(
    st.sampled_from(
        ["TOP", "'SIZE 10485760'", '"a \\"b\\""', "no", "1e3", "~", "0x1F", "LITERAL+", "'#x'", "null"]
    ),
    min_size=1,
    max_size=4,
).map(" ".join)


def _some(*words: str) -> st.SearchStrategy[str]:
    cases = st.sampled_from([str.lower, str.upper, str.title])
    one = st.tuples(st.sampled_from(words), cases).map(lambda pair: pair[1](pair[0]))
    return st.lists(one, min_size=1, max_size=len(words)).map(" ".join)


VALUES: Final[dict[str, st.SearchStrategy[str]]] = {
    "worker_processes": st.sampled_from(["auto", "1", "16"]),
    "worker_connections": st.sampled_from(["1", "1024", "65535"]),
    "error_log": st.sampled_from(
        ["stderr", "/var/log/x debug", "syslog:server=127.0.0.1 crit", "x.log warn"]
    ),
    "server_name": st.sampled_from(["mail.example.com", '""', "yes", "1.5", "'*'"]),
    "timeout": _MSEC,
    "max_errors": _NUMBER,
    "resolver": st.sampled_from(
        [
            "off",
            "off and on",
            "127.0.0.1",
            "127.0.0.1 [::1]:5353 valid=1M ipv6=off",
            "ns.example valid=30s status_zone=dns",
            "10.0.0.1:53 ipv4=off",
        ]
    ),
    "resolver_timeout": _MSEC,
    "auth_http": st.sampled_from(
        [
            "localhost",
            "http://[::1]:9/x?y=z",
            "unix:/run/a:/u",
            "127.0.0.1:9000/cgi?a=%20",
            "https://auth.example/",
        ]
    ),
    "auth_http_timeout": _MSEC,
    "auth_http_header": st.sampled_from(
        ["X-Key secret", "X-Key ''", "X \"a: 'b' #1\"", "Client-Port $remote_port", "Y ${z}"]
    ),
    "auth_http_pass_client_cert": _FLAG,
    "auth_http_keepalive": _FLAG,
    "auth_http_max_connections": st.sampled_from(["1", "512"]),
    "imap_auth": _some("plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"),
    "imap_capabilities": _WORDS,
    "imap_client_buffer": _BUFFER,
    "pop3_auth": _some("plain", "apop", "cram-md5", "external"),
    "pop3_capabilities": _WORDS,
    "smtp_auth": _some("plain", "login", "cram-md5", "external", "none"),
    "smtp_capabilities": _WORDS,
    "pop3_client_buffer": _BUFFER,
    "smtp_client_buffer": _BUFFER,
    "smtp_greeting_delay": _MSEC,
    "proxy": _FLAG,
    "proxy_buffer": _BUFFER,
    "proxy_timeout": _MSEC,
    "proxy_pass_error_message": _FLAG,
    "proxy_smtp_auth": _FLAG,
    "proxy_protocol": st.sampled_from(["on", "off", "v2", "V2"]),
    "xclient": _FLAG,
    "set_real_ip_from": st.sampled_from(
        ["unix:", "10.1.2.3/8", "2001:db8::/32", "[::1]", "lb.example", "192.0.2.1"]
    ),
    "starttls": st.sampled_from(["on", "off", "only", "ONLY"]),
    "ssl_certificate": _PATH,
    "ssl_certificate_key": _PATH,
    "ssl_certificate_compression": _FLAG,
    "ssl_certificate_selector": _PATH,
    "ssl_reject_handshake": _FLAG,
    "server_names": _some("a.example", "*.b.example", "xn--mller-kva.example"),
    "ssl_protocols": _some("TLSv1.2", "TLSv1.3", "TLSv1", "SSLv3"),
    "ssl_ciphers": st.sampled_from(["HIGH", "'HIGH:!aNULL'", '""', "ALL:@SECLEVEL=0"]),
    "ssl_prefer_server_ciphers": _FLAG,
    "ssl_ecdh_curve": st.sampled_from(["auto", "secp384r1", "X25519:prime256v1"]),
    "ssl_dhparam": _PATH,
    "ssl_password_file": _PATH,
    "ssl_session_cache": st.sampled_from(
        ["off", "none", "builtin", "builtin:7", "shared:a:1m", "shared:b:64k builtin"]
    ),
    "ssl_session_timeout": _SEC,
    "ssl_session_tickets": _FLAG,
    "ssl_session_ticket_key": _PATH,
    "ssl_verify_client": st.sampled_from(["off", "on", "optional", "optional_no_ca"]),
    "ssl_verify_depth": _NUMBER,
    "ssl_client_certificate": _PATH,
    "ssl_trusted_certificate": _PATH,
    "ssl_crl": _PATH,
    "ssl_conf_command": st.sampled_from(
        ["Options PrioritizeChaCha", "VerifyCAFile ca.pem", "Ciphersuites ''"]
    ),
    "auth_http_server_names": _FLAG,
    "auth_http_server_networks": _some("127.0.0.0/8", "::1", "10.1.2.3"),
    "auth_http_variables": _FLAG,
    "proxy_smtp_guard": _FLAG,
    "proxy_imap_guard": _FLAG,
    "oauth_strict": _FLAG,
    "auth_mode": st.sampled_from(["http", "HTTP"]),
    "auth_user_file": _PATH,
    "route": st.sampled_from(
        [
            "upstream=old domain=Example.org domain=*.example.net",
            "user=ceo@example.com upstream=dovecot; route table=moves; route domain=* upstream=old",
        ]
    ),
    "oauth_issuer": st.sampled_from(
        [
            "https://a.example jwks_uri=https://a.example/keys audience=mail",
            "https://b.example jwks_uri=https://b.example/k?x=1 audience=mail audience=imap "
            "token_type=rfc9068 identity_claim=sub require_email_verified=off leeway=30 'scope=a b' "
            "identity_domain=Example.org allowed_client=x allowed_algorithm=ES256",
        ]
    ),
    "auth_penalty": _FLAG,
    "auth_failure_delay": _MSEC,
    "auth_penalty_exempt": _some("192.0.2.0/24", "::1"),
    "auth_penalty_max": st.sampled_from(["1", "500"]),
    "auth_block": st.just("off"),  # another value needs addresses of clients, which depends on the listeners
    "smtp_auth_command": _FLAG,
    "real_ip_command": _FLAG,
    "max_commands": st.sampled_from(["0", "1000"]),
    "limit_rate": st.sampled_from(["0", "64k", "1m"]),
    "limit_rate_after": st.sampled_from(["0", "10m"]),
    "imap_id_command": st.sampled_from(["ignore", "answer"]),
    "imap_capabilities_from": st.sampled_from(["static", "upstream"]),
    "imap_capability_after_login": _FLAG,
    "smtp_capabilities_from": st.sampled_from(["static", "UPSTREAM"]),
    "ssl_alpn_strict": st.sampled_from(["nginx", "Registered"]),
    "proxy_id": st.sampled_from(["off", "auto", "required"]),
    "proxy_pop3_xclient": st.sampled_from(["off", "Auto", "required"]),
    "proxy_connect_timeout": _MSEC,
    "proxy_next_upstream": st.one_of(
        st.just("off"), _some("connect", "Greeting", "tls", "starttls", "hello", "unavailable")
    ),
    "proxy_next_upstream_tries": st.sampled_from(["1", "16"]),
    "proxy_next_upstream_timeout": _MSEC,
    "xclient_mode": st.sampled_from(["always", "auto", "required"]),
    "proxy_protocol_unique_id": _FLAG,
    "proxy_forward": st.sampled_from(["site 'a b'", "port $remote_port", "id ${session_id}"]),
    "auth_http_facts": _FLAG,
    "auth_http_overrides": _FLAG,
    "proxy_tempfail": st.sampled_from(["nginx", "rfc5530", "RFC5530"]),
    "proxy_smtp_helo": st.sampled_from(["server", "client"]),
    "proxy_auth": st.sampled_from(["plain login", "XOAUTH2 native", "external oauthbearer plain"]),
    "proxy_auth_require_tls": _FLAG,
    "proxy_master_user": st.sampled_from(["proxy master.txt", "proxy /m separator=%"]),
    "proxy_auth_token": st.sampled_from(
        [
            'https://login.example/token client_id=app client_secret_file=s.txt "scope=a b"',
            "http://127.0.0.1:8/t client_id=app grant=refresh_token refresh_token_file=/r",
        ]
    ),
    "auth_cache": st.sampled_from(
        ["off", "size=64k", "size=10m ttl=90 negative_ttl=5s stale_if_error=5m", "ttl=1h size=1000"]
    ),
    "auth_cache_key": _some("address", "destination", "server_name"),
    "auth_policy_server": st.sampled_from(
        [
            "http://127.0.0.1:8084/ nonce_file=n.txt",
            "https://policy.example/ nonce_file=/n header_name=X-API-Key header_file=k.txt hash_mech=SHA512 "
            "hash_truncate=0 timeout=1s500ms check_before=off check_after=off report=off reject_on_fail=on",
        ]
    ),
    "log_password_fingerprint": _FLAG,
    "proxy_ssl": st.sampled_from(["on", "off", "starttls", "STARTTLS"]),
    "proxy_ssl_verify": _FLAG,
    "proxy_ssl_verify_depth": _NUMBER,
    "proxy_ssl_name": st.sampled_from(["imap.example.com", "192.0.2.1", '""']),
    "proxy_ssl_server_name": _FLAG,
    "proxy_ssl_trusted_certificate": _PATH,
    "proxy_ssl_crl": _PATH,
    "proxy_ssl_certificate": _PATH,
    "proxy_ssl_certificate_key": _PATH,
    "proxy_ssl_password_file": _PATH,
    "proxy_ssl_protocols": _some("TLSv1.2", "TLSv1.3"),
    "proxy_ssl_ciphers": st.sampled_from(["HIGH", "DEFAULT"]),
    "proxy_ssl_session_reuse": _FLAG,
    "proxy_ssl_alpn": _some("imap", "pop3"),
    "proxy_ssl_conf_command": st.sampled_from(["Options PrioritizeChaCha", "VerifyCAFile ca.pem"]),
    "limit_conn_zone": st.just("$remote_user$remote_addr zone=sessions:1m"),
    "limit_conn": st.sampled_from(["sessions 1", "sessions 65535"]),
    "limit_conn_log_level": st.sampled_from(["info", "Error"]),
    "limit_conn_dry_run": _FLAG,
    "limit_conn_ipv6_prefix": st.sampled_from(["64", "128"]),
    "limit_conn_words": st.sampled_from(["freenginx", "Dovecot"]),
    "limit_preauth": st.sampled_from(["0", "10"]),
    "limit_req_zone": st.just("$remote_addr zone=logins:64k rate=120r/m"),
    "limit_req": st.sampled_from(
        ["zone=logins", "burst=5 zone=logins nodelay", "zone=logins burst=5 delay=2"]
    ),
    "limit_req_log_level": st.sampled_from(["warn", "notice"]),
    "limit_req_dry_run": _FLAG,
    "protocol": st.sampled_from(["imap", "pop3", "smtp"]),
    "listen": st.sampled_from(
        [
            "{}",
            "*:{} ssl",
            "[::]:{} ipv6only=off",
            "127.0.0.1:{} proxy_protocol so_keepalive=30m::10 rcvbuf=4k sndbuf=1m",
            "localhost:{} bind backlog=9",
            "unix:/run/{}",
            "[2001:db8::1]:{} ssl multipath so_keepalive=off ipv6only=on",
        ]
    ),
}
_ROWS: Final = by_name(LEVEL_DIRECTIVES)
_MANY: Final = {"auth_http", "error_log", "ssl_session_cache"}
_LEVEL: Final = [name for name in _ROWS if name != "ssl_certificate"]
_PAIR: Final = (
    "ssl_certificate c.pem; ssl_certificate_key k.pem; ssl_client_certificate ca.pem; "
    "proxy_ssl_certificate_key own.pem;"
)
_ZONES: Final = {"limit_conn_zone", "limit_req_zone"}
"""``mail {}`` always has them, as limits name them."""


_ONE_VALUE: Final = {"proxy_forward", "oauth_issuer", "route", "limit_conn", "limit_req", *_ZONES}
"""Lists whose items must differ; their strategies have few values."""


def _may_repeat(name: str) -> bool:
    return (_ROWS[name].type.appends and name not in _ONE_VALUE) or name in _MANY


@st.composite
def _lines(draw: st.DrawFn, without: frozenset[str]) -> list[str]:
    """Some directives of one level."""
    names = draw(st.lists(st.sampled_from(_LEVEL), max_size=10))
    once = [
        name
        for number, name in enumerate(names)
        if name not in without and (_may_repeat(name) or name not in names[:number])
    ]
    return [f"{name} {draw(VALUES[name])};" for name in once]


@st.composite
def _servers(draw: st.DrawFn) -> list[str]:
    servers = []
    for number in range(draw(st.integers(1, 3))):
        listens = draw(st.lists(VALUES["listen"], min_size=1, max_size=3))
        ports = [2000 + 100 * number + index for index in range(len(listens))]
        lines = [f"listen {listen.format(port)};" for listen, port in zip(listens, ports, strict=True)]
        lines += [f"protocol {draw(VALUES['protocol'])};", *draw(_lines(frozenset()))]
        if draw(st.booleans()):
            lines.append(f"server_names {draw(VALUES['server_names'])};")
        if draw(st.booleans()):
            path = f"ssl_certificate {draw(VALUES['ssl_certificate'])};"
            lines += [path, f"ssl_certificate_key {draw(VALUES['ssl_certificate_key'])};"]
        servers.append("\n".join(draw(st.permutations(lines))))
    return servers


_UPSTREAMS = """
upstream dovecot {
    server Dovecot-0.dovecot:143 weight=3;
    server [2001:db8::1] backup;
    hash $remote_user consistent;
    proxy_ssl starttls;
    proxy_ssl_certificate c.pem;
    proxy_ssl_certificate_key k.pem;
    proxy_next_upstream connect;
}
upstream old { server 192.0.2.1; }
"""


@st.composite
def _files(draw: st.DrawFn) -> dict[str, str]:
    """An ``nginx.conf`` and what it includes."""
    around = [
        f"{name} {draw(VALUES[name])};" for name in ("worker_processes", "error_log") if draw(st.booleans())
    ]
    around.append(f"events {{ worker_connections {draw(VALUES['worker_connections'])}; }}")
    if draw(st.booleans()):
        around.append(f"worker_shutdown_timeout {draw(st.sampled_from(['0', '5m', '90']))};")
    mail = draw(_lines(frozenset({"ssl_client_certificate"} | _ZONES)))
    servers = [f"server {{\n{text}\n}}" for text in draw(_servers())]
    files = {"servers.conf": "\n".join(servers), "level.conf": "\n".join(mail)}
    inner = "include level.conf;" if draw(st.booleans()) else files["level.conf"]
    outer = "include serv*.conf;" if draw(st.booleans()) else files["servers.conf"]
    comment = draw(st.sampled_from(["", "# } a comment; {\n"]))
    zones = [f"{name} {draw(VALUES[name])};" for name in sorted(_ZONES)]
    text = "\n".join(
        [
            *around,
            "mail {",
            "auth_http first;",
            _UPSTREAMS,
            _PAIR,
            *zones,
            comment,
            inner,
            outer,
            "}",
            "http { x { } }",
        ]
    )
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return {name: part.replace("\n", end) for name, part in {**files, "nginx.conf": text}.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


def test_every_directive_is_generated() -> None:
    rows = (*MAIN_DIRECTIVES, *SERVER_DIRECTIVES, *LEVEL_DIRECTIVES, *FOLDED_DIRECTIVES)
    assert set(VALUES) == {row.name for row in rows}


@given(files=_files())
@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_converted_manifest_has_the_same_meaning(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    source = str(folder / "nginx.conf")
    text = (folder / "nginx.conf").read_text("utf-8")
    direct = load(text.encode(), source=source)
    converted = load(to_manifest_yaml(parse_nginx(text, source=source, only_to_print=True)).encode())
    assert converted.config == without_logs(direct.config)
    assert converted.hash == config_hash(without_logs(direct.config))
