# SPDX-License-Identifier: Apache-2.0
"""Arguments, exit codes and output of the command."""

from __future__ import annotations

import argparse
import io
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mailproxy.cli import admin, default_log_format, main, workers
from mailproxy.supervisor.config_check import check_config
from mailproxy.tls.openssl import OpenSslUnavailable
from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.rendered import dump
from support.config_bodies import body
from support.tls_authority import Authority
from support.worker_processes import PYTHONPATH

GOOD: Final = """\
apiVersion: mailproxy.dev/v1alpha1
kind: MailProxy
metadata: {name: edge}
spec:
  mail: {authHttp: "http://127.0.0.1:9000/auth", serverName: mail.example.com}
  servers:
    - {name: imap, protocol: imap, listen: [{address: 127.0.0.1, port: 10143}]}
"""
BAD: Final = GOOD.replace("port: 10143", "port: 99999").replace("protocol: imap", "protocol: gopher")
NGINX: Final = """\
worker_processes 2;
events { }
mail {
    auth_http localhost:9000/auth;
    server { listen 127.0.0.1:10143; protocol imap; }
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "configuration"


@pytest.mark.parametrize("text", [GOOD, NGINX])
def test_check_prints_one_line_about_a_good_file(
    file: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert main(["check", "-f", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: ok, 1 server, 1 listener\n", "")


def test_check_counts_servers_and_listeners(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "server { listen 127.0.0.1:10110-10112; listen [::1]:10110; protocol pop3; }\n}"
    file.write_text(NGINX.strip().removesuffix("}") + more)
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok, 2 servers, 5 listeners\n"


def test_check_names_every_problem_with_its_path(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)
    assert main(["check", "-f", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "spec.servers[0].protocol: " in err
    assert "spec.servers[0].listen[0].port: " in err


def test_check_names_file_and_line_of_an_nginx_conf(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(NGINX.replace("auth_http", "auth_htp"))
    assert main(["check", "-f", str(file)]) == 1
    assert f"{file}:4: " in capsys.readouterr().err


def test_check_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))
    assert main(["check", "-f", "-"]) == 1
    assert "port" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert main(["check", "-"]) == 0
    assert capsys.readouterr().out == "standard input: ok, 1 server, 1 listener\n"


@pytest.mark.parametrize("command", ["check", "convert"])
def test_the_file_is_an_argument_or_an_option(
    file: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(NGINX)
    output = []
    for arguments in ([str(file)], ["-f", str(file)], ["--file", str(file)]):
        assert main([command, *arguments]) == 0
        output.append(capsys.readouterr())
    assert output[0] == output[1] == output[2]
    assert output[0].out


@pytest.mark.parametrize("arguments", [["FILE"], ["-f", "FILE"]])
def test_run_accepts_the_file_as_argument_or_option(
    file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    file.write_text(NGINX.replace("auth_http", "auth_htp"))
    assert main(["run", *[word.replace("FILE", str(file)) for word in arguments]]) == 1
    assert f"mailproxy: {file}:4: unknown directive" in capsys.readouterr().err


def test_logs_are_text_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    assert default_log_format() == "text"
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert default_log_format() == "json"
    monkeypatch.setattr("sys.stderr", None)
    assert default_log_format() == "json"


def test_check_without_a_file_prints_the_reason(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-f", str(file)]) == 1
    assert capsys.readouterr().err == f"{file}: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("certificate", "code", "begins"),
    [
        # a missing file is a problem; a missing file of a Secret is not
        (
            "{certificateFile: /nowhere/tls.crt, keyFile: /nowhere/tls.key}",
            1,
            "spec.servers[0].sslCertificate: ",
        ),
        ("{secretName: mail-tls}", 0, "note: spec.servers[0].sslCertificate: "),
    ],
)
def test_check_reports_missing_files(
    file: Path, capsys: pytest.CaptureFixture[str], certificate: str, code: int, begins: str
) -> None:
    listener = "{address: 127.0.0.1, port: 10143, ssl: true}"
    tls = f"sslCertificate: [{certificate}], listen: [{listener}]"
    file.write_text(GOOD.replace("listen: [{address: 127.0.0.1, port: 10143}]", tls))
    assert main(["check", "-f", str(file)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(begins)


def _with_tls(file: Path, directives: str) -> str:
    """An ``nginx.conf`` with a certificate that is good, and directives on line 8."""
    pair = Authority(file.parent).issue().files
    names = f"ssl_certificate '{pair.certificate}';\nssl_certificate_key '{pair.key}';"
    return NGINX.replace("listen 127.0.0.1:10143;", f"listen 127.0.0.1:10143 ssl;\n{names}\n{directives}\n")


@pytest.mark.parametrize(
    ("directives", "begins"),
    [
        ("ssl_ciphers nonsense;", ':8: "ssl_ciphers": '),
        ("ssl_ecdh_curve nonsense;", ':8: "ssl_ecdh_curve": '),
        ("ssl_conf_command Nonsense x;", ':8: "ssl_conf_command": '),
        ("ssl_session_ticket_key configuration;", ':8: "ssl_session_ticket_key": '),
        ("ssl_password_file nowhere;", ':8: "ssl_password_file": '),
        ("ssl_verify_client on; ssl_client_certificate configuration;", ':8: "ssl_client_certificate": '),
        ("ssl_certificate nowhere; ssl_certificate_key nowhere;", ':8: "ssl_certificate": '),
    ],
)
def test_check_creates_tls_contexts(
    file: Path, directives: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(_with_tls(file, directives))
    assert main(["check", "-f", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{file}{begins}")


@pytest.mark.parametrize("directives", ["", "ssl_crl nowhere; ssl_client_certificate nowhere;"])
def test_check_ignores_unused_files(file: Path, directives: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(_with_tls(file, directives))
    assert main(["check", "-f", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: ok, 1 server, 1 listener\n", "")


def test_check_names_a_missing_certificate_beside_every_other_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        "mail {\nauth_http a;\nssl_certificate /nowhere/c;\nssl_certificate_key /nowhere/k;\n"
        "ssl_ciphers nonsense;\ntimeot 5s;\nserver { listen 127.0.0.1:993 ssl; }\nserver { lisen 143; }\n}\n"
    )
    assert main(["check", str(file)]) == 1
    output = [line.removeprefix(f"{file}:") for line in capsys.readouterr().err.splitlines()]
    assert output == [
        '3: "ssl_certificate": /nowhere/c: there is no such file',
        '4: "ssl_certificate_key": /nowhere/k: there is no such file',
        '5: "ssl_ciphers": SSL_CTX_set_cipher_list("nonsense") failed: no cipher can be selected.',
        '6: unknown directive "timeot"; did you mean timeout?',
        '8: unknown directive "lisen"; did you mean listen?',
    ]


def test_check_names_a_missing_certificate_of_a_manifest_beside_every_other_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = "sslCertificate: [{certificateFile: /nowhere/c, keyFile: /nowhere/k}], timeot: 5s"
    listen = "listen: [{address: 127.0.0.1, port: 10143, ssl: true}]"
    file.write_text(GOOD.replace("listen: [{address: 127.0.0.1, port: 10143}]", f"{listen}, {tls}"))
    assert main(["check", str(file)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "spec.servers[0].timeot: unknown field; did you mean timeout?",
        "spec.servers[0].sslCertificate: /nowhere/c: there is no such file",
        "spec.servers[0].sslCertificate: /nowhere/k: there is no such file",
    ]


def test_check_reports_values_that_openssl_changes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(_with_tls(file, "ssl_protocols SSLv2 TLSv1.3;"))
    assert main(["check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(": ok, 1 server, 1 listener\n")
    assert err == f'note: {file}:8: "ssl_protocols": {ssl.OPENSSL_VERSION} has no SSLv2: ignored\n'


def test_check_reports_unavailable_openssl_once(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.tls.context.load_openssl", lambda: OpenSslUnavailable("it is hidden"))
    text = _with_tls(file, "")
    inside = text[text.index("server {") : text.rindex("}")]
    file.write_text(text.replace(inside, inside + inside.replace(":10143", ":10144")))
    assert main(["check", str(file)]) == 0
    err = capsys.readouterr().err
    assert err.count("it is hidden: sessions are resumed within one worker only") == 1
    assert err.startswith(f"note: {file}:6: ")


@pytest.mark.parametrize(
    ("field", "instead"),
    [
        ("sslCertificate: [{secretName: tls}], listen: [{port: 10143, ssl: true}]",
         "certificateFile and keyFile"),
        ("authHttpHeader: [{name: X, valueFrom: {secretKeyRef: {name: tls, key: k}}}], "
         "listen: [{port: 10143}]",
         "value"),
    ],
)  # fmt: skip
def test_secret_reference_outside_of_a_pod_gets_a_hint(
    file: Path, capsys: pytest.CaptureFixture[str], field: str, instead: str
) -> None:
    file.write_text(GOOD.replace("listen: [{address: 127.0.0.1, port: 10143}]", field))
    output = (
        f"the Secret tls is mounted as a file only in a pod: elsewhere use {instead}, "
        "or use mailproxy-operator local --secrets DIR"
    )
    assert main(["check", str(file)]) == 0
    assert f"there is no such file; {output}" in capsys.readouterr().err
    with pytest.raises(ConfigError) as raised:
        check_config(file.read_bytes(), source=str(file), hostname="h").runnable()
    assert all(output in problem.reason for problem in raised.value.problems)


def test_missing_file_of_a_rendered_configuration_names_its_secret_key(file: Path) -> None:
    header = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "auth", "key": "k"}}}
    manifest = parse_manifest(body(mail={"authHttp": "a", "authHttpHeader": [header]}))
    verdict = check_config(dump(compile_proxy(manifest)), source=str(file), hostname="h")
    assert [str(problem) for problem in verdict.absent] == [
        "servers[imap].auth_http_header: /etc/mailproxy-refs/secrets/auth/k: there is no such file; "
        "check that the Secret auth has the key k"
    ]


def test_convert_prints_a_manifest_and_notices(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(NGINX + "http { }\n")
    assert main(["convert", str(file), "--name", "edge", "--namespace", "mail"]) == 0
    out, err = capsys.readouterr()
    assert "metadata: {name: edge, namespace: mail}" in out
    assert f"{file}:7: not about mail, ignored: http ({file}:7)" in err
    file.write_text(out)
    assert main(["check", "-f", str(file)]) == 0


def test_convert_reports_directives_it_cannot_convert(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inline = "listen 127.0.0.1:10143 ssl;\nssl_certificate data:HIDDEN; ssl_certificate_key data:HIDDEN;"
    file.write_text(NGINX.replace("listen 127.0.0.1:10143;", inline))
    assert main(["convert", str(file), "--name", "edge"]) == 0
    out, err = capsys.readouterr()
    assert "{secretName: edge-server-1-1}" in out
    assert f'{file}:6: "ssl_certificate" directive: data: cannot be carried over' in err
    assert f'{file}:6: "ssl_certificate_key" directive: data: cannot be carried over' in err
    assert "HIDDEN" not in out + err
    assert main(["check", "-f", str(file)]) == 1
    assert capsys.readouterr().err.count("cannot be carried over") == 2


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"mail {", ":1", "unexpected end of file"),
        (b"mail {\n\xff }", ":2", "is not UTF-8 text"),
        (b"mail {\r\n\r\n\0}", ":3", "is not text: it contains a NUL character"),
        (b"\x7fELF\x02\x01\x01\0\0", ":1", "is not text"),
        (b"\xff\xfem\0a\0i\0l\0", ":1", "is not text"),  # UTF-16
        (b"\xef\xbb\xbfmail {\r\n auth_htp a; }", ":2", 'unknown directive "auth_htp"'),
        (b"mail { auth_http a;\n perl_modules x; }", ":2", 'unknown directive "perl_modules"'),
        (b"vts_zone;\nmail { }", ":1", 'unknown directive "vts_zone"'),
        (b"mail {\n include nowhere; }", ":2", "cannot read"),
        (b"mail {\n include .; }", ":2", "Is a directory"),
        (b"mail {\n include configuration; }", ":2", "includes itself"),
        (b"mail {\n" * 65, ":65", "nested blocks"),
        (b" " * (3 * 1024 * 1024 + 1), "", "is larger than 3145728 bytes"),
        (b"", "", "there is no mail block"),
        (b"\x1b[2J on;", ":1", r'unknown directive "\x1b[2J"'),
    ],
)
def test_convert_rejects_invalid_nginx_conf(
    file: Path, capsys: pytest.CaptureFixture[str], data: bytes, line: str, reason: str
) -> None:
    file.write_bytes(data)
    assert main(["convert", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{file}{line}: ")
    assert reason in err


def test_convert_reports_an_unreadable_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(file)]) == 1
    assert capsys.readouterr() == ("", f"{file}: cannot be read: No such file or directory\n")
    assert main(["convert", str(tmp_path)]) == 1
    assert capsys.readouterr() == ("", f"{tmp_path}: cannot be read: Is a directory\n")


def test_convert_reports_a_file_without_permission(tmp_path: Path) -> None:
    """Run as another user, since root may read everything."""
    file = tmp_path / "nginx.conf"
    file.write_text(NGINX)
    file.chmod(0)
    program = (
        "import os, sys\n"
        "from mailproxy.cli import main\n"
        "main(['convert', '/nowhere'])\n"  # imports modules that the other user cannot read
        "folder, name = os.path.split(sys.argv[1])\n"
        "os.chdir(folder)\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([]); os.setgid(65532); os.setuid(65532)\n"
        "sys.exit(main(['convert', name]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.splitlines()[1:] == ["nginx.conf: cannot be read: Permission denied"]


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + NGINX.encode(), NGINX.replace("\n", "\r\n").encode()])
def test_convert_accepts_bom_and_crlf(file: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    file.write_text(NGINX)
    assert main(["convert", str(file)]) == 0
    plain = capsys.readouterr()
    file.write_bytes(data)
    assert main(["convert", str(file)]) == 0
    assert capsys.readouterr() == plain


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["run"],
        ["check"],
        ["convert"],
        ["run", "-f", "-"],
        ["run", "-"],
        ["check", "x", "-f", "x"],
        ["convert", "x", "-f", "x"],
        ["run", "-f", "x", "--workers", "0"],
        ["run", "-f", "x", "--workers", "many"],
        ["run", "-f", "x", "--workers", "100000"],
        ["run", "-f", "x", "--admin", "9113"],
        ["run", "-f", "x", "--log-format", "xml"],
        ["run", "-f", "x", "--log-level", "loud"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: mailproxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("127.0.0.1:9113", ("127.0.0.1", 9113)),
        ("[::]:9113", ("::", 9113)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("::1:80", None),
        (":80", None),
        ("[]:80", None),
        ("[127.0.0.1]:80", None),
        ("127.0.0.1:", None),
        ("127.0.0.1:x", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:٣", None),
        ("", None),
    ],
)
def test_the_admin_address(text: str, where: tuple[str, int] | None) -> None:
    if where is not None:
        assert admin(text) == where
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            admin(text)


@pytest.mark.parametrize(("text", "count"), [("auto", "auto"), ("1", 1), ("1024", 1024)])
def test_the_number_of_workers(text: str, count: object) -> None:
    assert workers(text) == count


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("mailproxy ")


def test_check_command_imports_no_heavy_library(file: Path) -> None:
    file.write_text(GOOD)
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mailproxy", "check", "-f", str(file)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "mailproxy_config.load" in modules
    assert not modules & {"asyncio", "aiohttp", "aiodns", "prometheus_client", "cryptography"}


@pytest.mark.parametrize("command", ["check", "convert"])
def test_full_disk_prints_no_traceback(file: Path, command: str) -> None:
    file.write_text(NGINX)
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-m", "mailproxy", command, str(file)],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "mailproxy: standard output: No space left on device"
    assert "Traceback" not in found.stderr


def test_closed_stdout_prints_no_traceback(file: Path) -> None:
    file.write_text(NGINX)
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run(
        [sys.executable, "-m", "mailproxy", "convert", str(file)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert "Broken pipe" not in found.stderr
