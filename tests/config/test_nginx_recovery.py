# SPDX-License-Identifier: Apache-2.0
"""An error in an ``nginx.conf`` is reported without its consequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.nginx.convert import parse_nginx

SERVERS = "".join(f"server {{ listen {port}; }}\n" for port in (143, 993, 110, 25))
MISSING = 'is not terminated by ";": is a ";" missing at the end of this line?'


def problems_of(text: str, source: str = "n.conf") -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_nginx(text, source=source)
    return list(map(str, raised.value.problems))


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        # in mail {}: four servers would lack their auth_http
        ("mail {\nserver_name mail.example.com\nauth_http a;\n" + SERVERS + "}",
         [f'n.conf:2: directive "server_name" {MISSING}']),
        # nginx accepts this, with unintended capabilities
        ("mail {\nimap_capabilities IMAP4rev1\n  IDLE # more\nauth_http a;\n" + SERVERS + "}",
         [f'n.conf:3: directive "imap_capabilities" {MISSING}']),
        # before a block
        ("mail {\nauth_http a\n" + SERVERS + "}", [f'n.conf:2: directive "auth_http" {MISSING}']),
        # in a server
        ("mail { auth_http a;\nserver {\nprotocol imap\nlisten 1143;\n}\n}",
         [f'n.conf:3: directive "protocol" {MISSING}']),
        ("mail { auth_http a;\nserver {\nlisten 143 ssl\nssl_certificate c;\nssl_certificate_key k\n"
         "starttls on;\n}\n}",
         [f'n.conf:3: directive "listen" {MISSING}', f'n.conf:5: directive "ssl_certificate_key" {MISSING}']),
        # in the main context
        ("worker_processes 2\nerror_log stderr info\nevents { worker_connections 5; }\n"
         "mail { auth_http a;\n" + SERVERS + "}",
         [f'n.conf:1: directive "worker_processes" {MISSING}', f'n.conf:2: directive "error_log" {MISSING}']),
        # the rest of the file is still checked
        ("mail {\ntimeout 5s\nauth_http a;\ntimout 5s;\n" + SERVERS + "}",
         [f'n.conf:2: directive "timeout" {MISSING}',
          'n.conf:4: unknown directive "timout"; did you mean timeout?']),
        # in one line
        ("mail { auth_http a; server { listen 143 protocol imap; } }",
         ['n.conf:1: "listen" directive: invalid parameter "protocol"; is a ";" missing before "protocol"?']),
        ("mail { server_name a auth_http b;\n" + SERVERS + "}",
         ['n.conf:1: invalid number of arguments in "server_name" directive; '
          'is a ";" missing before "auth_http"?']),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_missing_semicolon_is_the_only_error(text: str, problems: list[str]) -> None:
    assert problems_of(text) == problems


@pytest.mark.parametrize(
    "text",
    [
        "server_name\n  mail;",  # the only argument
        "imap_capabilities IMAP4rev1\n  'timeout' 5s;",  # in quotes
        "imap_capabilities IMAP4rev1\n  IDLE\n  UIDPLUS;",
        "imap_capabilities IMAP4rev1\n  mail IDLE;",  # a block directive without its block
        "auth_http_header X-Key\n  timeout;",  # one argument is not enough for a header
        "ssl_ciphers\n  HIGH;",
    ],
)
def test_arguments_can_be_on_separate_lines(text: str) -> None:
    parse_nginx(f"mail {{ auth_http a;\n{text}\n{SERVERS} }}")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("mail { auth_http a;\nserver {\nlisen 143;\n}\n}",
         ['n.conf:3: unknown directive "lisen"; did you mean listen?']),
        ("mail {\nauth_htp a;\n" + SERVERS + "}",
         ['n.conf:2: unknown directive "auth_htp"; did you mean auth_http?']),
        ("mail {\nauth_http a b;\n" + SERVERS + "}",
         ['n.conf:2: invalid number of arguments in "auth_http" directive']),
        ("auth_http a;\nmail {\n" + SERVERS + "}",
         ['n.conf:1: "auth_http" directive is not allowed here: it is allowed in mail {} or server {}']),
        ("mail { auth_http a;\nserver { listen 1143;\nprotcol imap;\n}\n}",
         ['n.conf:3: unknown directive "protcol"; did you mean protocol?']),
        ("mail { auth_http a;\nserver { listen 993 ssl;\nssl_certificat c;\nssl_certificate_key k; }\n}",
         ['n.conf:3: unknown directive "ssl_certificat"; did you mean ssl_certificate?']),
        ("mail { auth_http a;\nserver { listen 993 ssl; ssl_certificate c; ssl_certificate_key k;\n"
         "ssl_verify_client on;\nssl_client_certificat x;\n}\n}",
         ['n.conf:4: unknown directive "ssl_client_certificat"; did you mean ssl_client_certificate?']),
        ("mail { auth_http a;\nserver { listen 993 ssl;\nssl_certificate c; }\n}",
         ['n.conf:2: no "ssl_certificate_key" is defined for certificate "CWD/c"']),
        ("mail {\ninclude nowhere;\n" + SERVERS + "}",
         ["n.conf:2: cannot read CWD/nowhere: No such file or directory"]),
        ("mail { auth_http a;\nserver {\ninclude nowhere;\n}\n}",
         ["n.conf:3: cannot read CWD/nowhere: No such file or directory"]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_consequences_of_an_error_are_not_reported(text: str, problems: list[str]) -> None:
    assert [problem.replace(str(Path.cwd()), "CWD") for problem in problems_of(text)] == problems


def test_independent_errors_are_reported() -> None:
    text = "mail {\nserver {\nlisen 143;\n}\nserver { listen 110; }\n}"
    assert problems_of(text) == [
        'n.conf:2: "server": "auth_http" is required: set it here or in mail {}',
        'n.conf:3: unknown directive "lisen"; did you mean listen?',
        'n.conf:5: "server": "auth_http" is required: set it here or in mail {}',
    ]


def test_unreadable_include_affects_only_its_server(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    text = "mail {\nserver { include nowhere; }\nserver { listen 110; }\n}"
    assert [problem.removeprefix(f"{main}:") for problem in problems_of(text, str(main))] == [
        f"2: cannot read {tmp_path}/nowhere: No such file or directory",
        '3: "server": "auth_http" is required: set it here or in mail {}',
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "mail { auth_http a;" + "server { }\n" * 20_000 + "}",
            "has 20000 items, which is out of range 1 to 32",
        ),
        ("mail { auth_http a;" + "listn 143;\n" * 20_000 + "}", "reading stopped after 1000 problems"),
        ("mail { auth_http a; server {" + "listen 1-16;\n" * 20_000 + "}}", "out of range 1 to 16"),
    ],
    ids=["servers", "problems", "listeners"],
)
def test_reading_stops_at_the_problem_limit(text: str, reason: str) -> None:
    problems = problems_of(text)
    assert any(reason in problem for problem in problems)
    assert len(problems) <= 1001


def test_token_limit_counts_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy_config.nginx.syntax.MAX_NGINX_TOKENS", 1000)
    (tmp_path / "more").write_text("imap_auth plain;\n" * 200)
    text = "mail { auth_http a;\ninclude more;\ninclude more;\n" + SERVERS + "}"
    (problem,) = problems_of(text, str(tmp_path / "nginx.conf"))
    assert problem.startswith(f"{tmp_path}/more:")
    assert (
        "is too large: it has more than 500000 words with all that it includes" in problem
        or "1000" in problem
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mail {\nserver {\nlisten 143;\nserver {\nlisten 110; }\n}",
         '; does the "server" of line 2 lack a "}" before the "server" of line 4?'),
        ("events {\nmail {\nserver { listen 143; }\n}",
         '; does the "events" of line 1 lack a "}" before the "mail" of line 2?'),
        ("mail {\nserver { listen 143; }\n", ""),
    ],
)  # fmt: skip
def test_missing_brace_is_reported_at_its_block(text: str, hint: str) -> None:
    (problem,) = problems_of(text)
    assert problem.endswith(f'unexpected end of file, expecting "}}"{hint}')
