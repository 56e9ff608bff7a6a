# SPDX-License-Identifier: Apache-2.0
"""Converting an ``nginx.conf`` to a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.load import Loaded, load
from mailproxy_config.manifest import MailProxyManifest
from mailproxy_config.model import LogLevel, Protocol, Seconds, SessionCache
from mailproxy_config.nginx.convert import parse_nginx, to_manifest_yaml


def parsed(mail: str, around: str = "events {}") -> MailProxyManifest:
    return parse_nginx(f"{around}\nmail {{\nauth_http a;\n{mail}\n}}\n", source="/etc/nginx/nginx.conf")


def loaded(mail: str, around: str = "events {}") -> Loaded:
    """Load it as the proxy does."""
    text = f"{around}\nmail {{\nauth_http a;\n{mail}\n}}\n"
    return load(text.encode(), source="/etc/nginx/nginx.conf")


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_nginx(text, source="n.conf")
    return list(map(str, raised.value.problems))


def test_resource_has_the_given_name() -> None:
    text = "mail { auth_http a; server { listen 143; } }"
    assert parse_nginx(text).metadata.name == "mailproxy"
    named = parse_nginx(text, name="edge", namespace="mail").metadata
    assert (named.name, named.namespace) == ("edge", "mail")


def test_invalid_name_is_not_reported_for_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^metadata\.name: must start with a letter"):
        parse_nginx("mail { auth_http a; server { listen 143; } }", name="1_")


def test_main_and_events_directives_are_converted() -> None:
    around = (
        "worker_processes auto; error_log stderr; error_log stderr info; error_log stderr crit;\n"
        "worker_shutdown_timeout 1m; events { worker_connections 99; }"
    )
    found = loaded("server { listen 143; }", around)
    assert (found.config.workers, found.config.worker_connections) == (None, 99)
    assert found.config.error_log is LogLevel.INFO  # the lowest of several levels
    assert found.config.drain.timeout == Seconds(60)
    assert found.notices == ()


def test_port_range_is_expanded() -> None:
    listen = loaded(
        "server { listen 127.0.0.1:143-145 ssl; protocol imap; ssl_certificate c; ssl_certificate_key k; }"
    )
    assert [(each.port, each.ssl) for each in listen.config.servers[0].listen] == [
        (143, True),
        (144, True),
        (145, True),
    ]


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [
        ("listen 143;", Protocol.IMAP),
        ("listen 1143; listen 110; listen 25;", Protocol.POP3),  # the first well-known one
        ("listen 143; protocol smtp;", Protocol.SMTP),
        ("protocol smtp; listen 143; protocol pop3;", Protocol.POP3),  # the last one
    ],
)
def test_protocol_of_server_is_derived(lines: str, protocol: Protocol) -> None:
    found = parsed(f"server {{ {lines} }}")
    assert found.servers[0].protocol is protocol
    assert found.raw["spec"]["servers"][0]["protocol"] == protocol


def test_servers_are_named_after_their_protocols() -> None:
    found = parsed(
        "server { listen 25; } server { listen 143; } server { listen 127.0.0.1:587; }"
        "server { listen 127.0.0.2:587; } server { listen unix:/x; protocol smtp; }"
    )
    assert [each.name for each in found.servers] == ["smtp-25", "imap", "smtp-587", "smtp-587-3", "smtp-unix"]


def test_repeated_directives_are_appended() -> None:
    server = loaded(
        "auth_http first; auth_http last;\n"
        "imap_auth plain; imap_auth login plain; imap_capabilities A; imap_capabilities B A;\n"
        "auth_http_header X 1; auth_http_header Y 2; set_real_ip_from unix:; set_real_ip_from 10.0.0.0/8;\n"
        "server { listen 143; }"
    ).config.servers[0]
    assert server.auth_http.host == "last"
    assert server.imap_auth == {"plain", "login"}
    assert server.imap_capabilities == ("A", "B", "A")
    assert [header.name for header in server.auth_http_header] == ["X", "Y"]
    assert server.set_real_ip_from == ("unix:", "10.0.0.0/8")


def test_relative_certificate_paths_are_resolved() -> None:
    server = loaded(
        "ssl_certificate tls/a.pem; ssl_certificate_key /k.pem; starttls on; server { listen 143; }"
    ).config.servers[0]
    (pair,) = server.ssl_certificate
    assert (pair.certificate, pair.key) == ("/etc/nginx/tls/a.pem", "/k.pem")


def test_shared_session_cache_is_inherited() -> None:
    server = loaded(
        "ssl_session_cache shared:a:1m; server { listen 143; ssl_session_cache builtin:5; }"
    ).config.servers[0]
    assert server.ssl_session_cache == SessionCache(builtin=5, shared_name="a", shared_size=1_048_576)  # type: ignore[arg-type]


def test_included_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "servers").write_text("server { listen 143; timeout 5x; }")
    (tmp_path / "common").write_text("\nproxy_buffer 1;")
    text = "mail {\n auth_http a;\n include common;\n include servers;\n}"
    with pytest.raises(ConfigError) as raised:
        parse_nginx(text, source=str(tmp_path / "nginx.conf"))
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in raised.value.problems] == [
        'common:2: "proxy_buffer": 1 is too small: a buffer has at least 128 bytes',
        'servers:1: "timeout": must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds',
    ]


def test_directives_that_are_not_converted_get_notices() -> None:
    around = (
        "user www;\nhttp { include missing; server { listen 80; } }\nstream {}\nworker_shutdown_timeout 0s;\n"
        "error_log /var/log/nginx/error.log info;\nevents { use epoll; }"
    )
    mail = "proxy on; set_real_ip_from 10.0.0.1/8;\nserver { listen 143 ipv6only=on; error_log x.log; }"
    text = f"{around}\nmail {{\nauth_http a;\n{mail}\n}}\n"
    manifest = parse_nginx(text, source="/etc/nginx/nginx.conf", only_to_print=True)
    assert list(map(str, manifest.notices)) == [
        '/etc/nginx/nginx.conf:1: "user" is ignored: '
        "the proxy runs as the user that starts it, and does not change users",
        "/etc/nginx/nginx.conf:2: not about mail, ignored: http (/etc/nginx/nginx.conf:2), "
        "stream (/etc/nginx/nginx.conf:3), use (/etc/nginx/nginx.conf:6)",
        '/etc/nginx/nginx.conf:4: "worker_shutdown_timeout" 0 (no limit) is not carried over',
        "/etc/nginx/nginx.conf:5: logs go to standard error, not to /var/log/nginx/error.log",
        '/etc/nginx/nginx.conf:9: "proxy": has no effect, as in nginx',
        '/etc/nginx/nginx.conf:9: "set_real_ip_from": low address bits of 10.0.0.1/8 are meaningless',
        "/etc/nginx/nginx.conf:10: ipv6only has no effect without an IPv6 address and is dropped",
        "/etc/nginx/nginx.conf:10: logs go to standard error, not to x.log",
    ]


_INLINE = """\
mail {
  auth_http a; ssl_certificate a.pem; ssl_certificate_key a.key;
  ssl_certificate "data:-----BEGIN CERTIFICATE-----\\nMIIB\\n"; ssl_certificate_key data:HIDDEN;
  ssl_client_certificate data:HIDDEN;
  server { listen 993 ssl; }
  server { listen 995 ssl; ssl_certificate b.pem; ssl_certificate_key engine:pkcs11:HIDDEN;
    ssl_session_ticket_key store:HIDDEN; }
}
"""


def test_certificates_without_files_get_notices_when_printed() -> None:
    found = parse_nginx(_INLINE, source="/etc/nginx/n", name="edge", only_to_print=True)
    mail, (first, second) = found.raw["spec"]["mail"], found.raw["spec"]["servers"]
    pair = {"certificateFile": "/etc/nginx/a.pem", "keyFile": "/etc/nginx/a.key"}
    assert mail["sslCertificate"] == [pair, {"secretName": "edge-mail-2"}]
    assert mail["sslClientCertificate"] == {
        "secretKeyRef": {"name": "edge-mail", "key": "ssl_client_certificate"}
    }
    assert "sslCertificate" not in first
    assert second["sslCertificate"] == [{"secretName": "edge-server-2-1"}]
    assert second["sslSessionTicketKey"] == [
        {"secretKeyRef": {"name": "edge-server-2", "key": "ssl_session_ticket_key"}}
    ]
    printed = to_manifest_yaml(found)
    assert "HIDDEN" not in printed
    assert len(load(printed.encode()).config.servers) == 2
    assert [str(notice).removeprefix("/etc/nginx/n:") for notice in found.notices] == [
        "1: create a Secret edge-mail-2 from the certificate (data:) and its key (data:)"
        "; the manifest refers to it",
        '2: "ssl_certificate": /etc/nginx/a.pem and /etc/nginx/a.key are not in the pod; '
        "put them into a Secret of type kubernetes.io/tls and write {secretName: NAME}",
        '3: "ssl_certificate" directive: data: cannot be carried over',
        '3: "ssl_certificate_key" directive: data: cannot be carried over',
        '4: "ssl_client_certificate" directive: data: cannot be carried over; '
        "put it into ssl_client_certificate of the Secret edge-mail",
        '6: "ssl_certificate_key" directive: engine: cannot be carried over',
        "6: create a Secret edge-server-2-1 from the certificate (/etc/nginx/b.pem) and its key (engine:)"
        "; the manifest refers to it",
        '7: "ssl_session_ticket_key" directive: store: cannot be carried over; '
        "put it into ssl_session_ticket_key of the Secret edge-server-2",
    ]


def test_certificates_without_files_are_errors() -> None:
    with pytest.raises(ConfigError) as raised:
        load(_INLINE.encode(), source="/etc/nginx/n")
    assert [problem.path for problem in raised.value.problems] == [
        f"/etc/nginx/n:{line}" for line in (3, 3, 4, 6, 7)
    ]
    assert "HIDDEN" not in str(raised.value)


def test_unpaired_certificates_and_keys_get_notices() -> None:
    mail = (
        "ssl_certificate_key a;\nssl_certificate_key b;\n"
        "server { listen 143;\nssl_certificate c;\nssl_certificate d;\nssl_certificate e; }"
    )
    assert [str(notice).removeprefix("/etc/nginx/nginx.conf:") for notice in parsed(mail).notices] == [
        "9: certificate /etc/nginx/e is not part of a pair and is left out"
    ]
    lone = "ssl_certificate_key a;\nserver { listen 143; }"
    assert [str(notice).removeprefix("/etc/nginx/nginx.conf:") for notice in parsed(lone).notices] == [
        "4: key /etc/nginx/a is not part of a pair and is left out"
    ]


def test_file_that_includes_itself_is_reported(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    text = "mail { auth_http a; server { listen 143; } }\ninclude *.conf;"
    main.write_text(text)
    with pytest.raises(ConfigError) as raised:
        parse_nginx(text, source=str(main))
    assert str(raised.value) == f"{main}:2: {main} includes itself"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("events {}", ["n.conf: there is no mail block"]),
        ("mail {}", ["n.conf: there is no server in its mail block"]),
        ("mail {", ['n.conf:1: unexpected end of file, expecting "}"']),
        ("mail;", ['n.conf:1: directive "mail" has no opening "{"']),
        ("mail x {}", ['n.conf:1: invalid number of arguments in "mail" directive']),
        ("mail {} mail {}", ['n.conf:1: "mail" directive is duplicate']),
        ("listen 5;", ['n.conf:1: "listen" directive is not allowed here: it is allowed in server {}']),
        ("worker_connections 5;", [
            'n.conf:1: "worker_connections" directive is not allowed here: it is allowed in events {}',
        ]),
        ("wroker_processes 1;", [
            'n.conf:1: unknown directive "wroker_processes"; did you mean worker_processes?',
        ]),
        ("worker_shutdown_timeout;", [
            'n.conf:1: invalid number of arguments in "worker_shutdown_timeout" directive',
        ]),
        ("worker_shutdown_timeout 1x; mail { auth_http a; server { listen 143; } }", [
            'n.conf:1: "worker_shutdown_timeout": must be a time such as 60s, 1m30s, 24h or 500ms; '
            "a bare number is seconds",
        ]),
        ("worker_processes 0; mail { auth_http a; server { listen 143; } }", [
            'n.conf:1: "worker_processes": 0 is out of range 1 to 256',
        ]),
        ("events { mail {} }", [
            'n.conf:1: "mail" directive is not allowed here: it is allowed outside of every block',
        ]),
        ("mail { server { server {} } }", [
            'n.conf:1: "server" directive is not allowed here: it is allowed in mail {}',
        ]),
        ("mail { server {\nlisten 143; } }", [
            'n.conf:1: "server": "auth_http" is required: set it here or in mail {}',
        ]),
        ("mail { auth_http a;\n" + "".join(f"server {{ listen 127.0.0.{n}:143; }}\n" for n in range(33)) + "}", [  # noqa: E501
            'n.conf:34: "server": has 33 items, which is out of range 1 to 32',
        ]),
        ("events {} events {}\nworker_processes 1; worker_processes 2;\nworker_shutdown_timeout 1s;\n"
         "worker_shutdown_timeout 2s; mail { auth_http a; server { listen 143; } }", [
            'n.conf:1: "events" directive is duplicate',
            'n.conf:2: "worker_processes" directive is duplicate',
            'n.conf:4: "worker_shutdown_timeout" directive is duplicate',
        ]),
        ("mail { auth_http a; server {\n listen 1;\n} }", [
            "n.conf:1: unknown mail protocol for server: add a line such as protocol imap;",
        ]),
        ("mail { auth_http a;\nserver {\nlisten 127.0.0.1;\n} }", [
            "n.conf:3: \"listen\" directive: no port in '127.0.0.1': a listener needs one",
        ]),
        ("mail {\nauth_http a;\nserver { listen 143; }\nserver {\nlisten *:143; }\n}", [
            'n.conf:5: "listen": duplicate *:143 address and port pair, also in n.conf:3',
        ]),
        ("mail {\nauth_http a; timeout 1s; timeout 2s;\nserver { listen 143 }\n}", [
            'n.conf:3: directive "listen" is not terminated by ";"',
        ]),
        ("mail {\nauth_http a;\ntimeout 1s;\ntimeout 2s;\nauth_htpp b;\n"
         "server { listen 143; protocol lmtp; }\n}", [
            'n.conf:4: "timeout" directive is duplicate',
            'n.conf:5: unknown directive "auth_htpp"; did you mean auth_http?',
            'n.conf:6: "protocol" directive: invalid value "lmtp", it must be one of imap, pop3, smtp',
        ]),
        ("mail {\nauth_http a;\nssl_certificate c;\nserver {\nlisten 993 ssl; } }", [
            'n.conf:4: no "ssl_certificate_key" is defined for certificate "CWD/c"',
        ]),
        ("mail {\nauth_http a; ssl_certificate_key data:x;\nserver { listen 143; } }", [
            'n.conf:2: "ssl_certificate_key" directive: data: cannot be carried over; put it into a file',
        ]),
        ("mail {\nauth_http a; imap_capabilities A\n\"b\\n\";\nserver { listen 143; } }", [
            'n.conf:2: "imap_capabilities": '
            "a capability must not contain control characters such as CR or LF",
        ]),
        ("mail {\nauth_http a;\nserver {\nlisten 25; smtp_capabilities DSN\nREQUIRETLS;\nproxy_ssl on; } }", [
            'n.conf:4: "smtp_capabilities": REQUIRETLS needs TLS with every client: '
            'set "starttls" to Only, or ssl for every listener',
        ]),
        ("mail {\nauth_http a; smtp_capabilities REQUIRETLS; ssl_certificate a; ssl_certificate_key b;\n"
         "server {\nlisten 465 ssl; } }", [
            'n.conf:3: "server": "smtp_capabilities" REQUIRETLS needs TLS to mail servers: '
            'set "proxy_ssl" to Starttls or Enabled (on)',
        ]),
        ("mail {\nauth_http a;\nproxy_forward site $remote_user;\nserver { listen 143; } }", [
            'n.conf:3: "proxy_forward": value "$remote_user" is no variable; there are $protocol, '
            "$remote_addr, $remote_port, $server_addr, $server_port, $session_id, $ssl_server_name",
        ]),
        ("mail {\nauth_http a; proxy_forward a 1;\nproxy_forward A 2;\nserver { listen 143; } }", [
            'n.conf:2: "proxy_forward": has "a" twice',
        ]),
        ("mail {\nauth_http a; proxy_forward 'a b' 1;\nserver { listen 143; } }", [
            "n.conf:2: \"proxy_forward\": name 'a b' is not valid: must be letters, digits, - and _",
        ]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_errors_have_file_and_line(text: str, problems: list[str]) -> None:
    assert [problem.replace(str(Path.cwd()), "CWD") for problem in problems_of(text)] == problems
