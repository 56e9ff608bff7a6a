# SPDX-License-Identifier: Apache-2.0
"""Loading a configuration file of any kind."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.compile import compile_proxy
from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import FileKind, Loaded, check_files, load, parse_manifest_text
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import AuthHttpHeader, CertificateFiles, StartTls, VerifyClient
from mailproxy_config.rendered import dump
from mailproxy_config.secret_refs import Mounts
from support.config_bodies import body, server

MANIFEST = json.dumps(body(server(), mail={"authHttp": "a", "proxy": True}), indent="\t").encode()
RENDERED = dump(compile_proxy(parse_manifest(body())), generation=4)
NGINX = b"# mail only\nevents {}\nmail { auth_http a; server { listen 143; } }\n"
YAML = """\
# a comment
apiVersion: mailproxy.dev/v1alpha1
kind: MailProxy
metadata: {name: edge, generation: 3}
spec:
  mail: {authHttp: a}
  servers: [{name: imap, listen: [{port: 143}]}]
"""


@pytest.mark.parametrize(
    ("text", "kind", "generation"),
    [
        (MANIFEST, FileKind.MANIFEST, 7),
        (YAML.encode(), FileKind.MANIFEST, 3),
        (b"\xef\xbb\xbf---\n" + YAML.encode(), FileKind.MANIFEST, 3),
        (RENDERED, FileKind.RENDERED, 4),
        (NGINX, FileKind.NGINX, 0),
        (b"mail{auth_http a;server{listen 143;}}", FileKind.NGINX, 0),
        (b"user\twww;\r\nmail { auth_http a; server { listen 143; } }", FileKind.NGINX, 0),
    ],
)
def test_kind_of_file_is_recognised_from_content(text: bytes, kind: FileKind, generation: int) -> None:
    loaded = load(text)
    assert (loaded.kind, loaded.generation) == (kind, generation)
    assert loaded.config.servers[0].listen[0].port == 143
    assert len(loaded.hash) == 64


def test_json_with_unquoted_names_is_yaml() -> None:
    text = "{apiVersion: mailproxy.dev/v1alpha1, kind: MailProxy, metadata: {name: a}, spec: %s}"
    spec = "{mail: {authHttp: a}, servers: [{name: a, listen: [{port: 143}]}]}"
    assert load((text % spec).encode()).kind is FileKind.MANIFEST


@pytest.mark.parametrize("text", [MANIFEST, RENDERED, NGINX])
def test_hostname_does_not_change_the_hash(text: bytes) -> None:
    here, there = load(text, hostname="here"), load(text, hostname="there")
    assert here.config.servers[0].server_name == "here"
    assert here.hash == there.hash == load(text).hash


def test_mounts_set_the_paths_of_references() -> None:
    header = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}}
    text = json.dumps(body(mail={"authHttp": "a", "authHttpHeader": [header]})).encode()
    found = load(text, mounts=Mounts(root="/r")).config.servers[0].auth_http_header
    assert found == (AuthHttpHeader(name="X", value_file="/r/secrets/a/k"),)


def test_other_documents_are_ignored_with_a_notice() -> None:
    text = f"kind: Secret\nmetadata: {{name: tls}}\n---\n{YAML}---\n- 1\n---\nx: 1\n"
    assert [str(notice) for notice in load(text.encode(), source="f.yaml").notices] == [
        "f.yaml: ignored: Secret tls",
        "f.yaml: ignored: a document that is no object",
        "f.yaml: ignored: a document without a kind",
    ]


def test_notices_are_returned() -> None:
    assert load(MANIFEST).notices == (Problem("spec.mail.proxy", "has no effect, as in nginx"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "f: is empty"),
        (b" \n", "f: is empty"),
        (b"a\0b", "f:1: is not text: it contains a NUL character"),
        (b"\xff\xfe", "f:1: is not UTF-8 text: invalid start byte"),
        (b" " * (MAX_FILE_BYTES + 1), "f: is larger than 3145728 bytes"),
        (f"{YAML}---\n{YAML}".encode(), "f: has 2 resources of kind MailProxy; exactly one is allowed"),
        (b"- 1", "f: is neither a MailProxy manifest (mailproxy.dev/v1alpha1), a rendered configuration, "
         "nor an nginx.conf"),
        (b"hello world", "f:1: directive \"hello\" is not terminated by \";\""),
        (b"kind: Pod\nmetadata: {name: x}", "apiVersion: must be mailproxy.dev/v1alpha1\n"
         "kind: must be MailProxy\nspec: is required"),
        (RENDERED[:100], "f: not valid JSON: "),
        (b"{a: [}", "f:1: not valid YAML: "),
        (YAML.replace("143", "99999").encode(),
         "spec.servers[0].listen[0].port: 99999 is out of range 1 to 65535"),
        (RENDERED.replace(b"143", b"99999"),
         "config.servers[0].listen[0].port: 99999 is out of range 1 to 65535"),
        (NGINX.replace(b"143", b"99999"), 'f:3: "listen" directive: 99999 is out of range 1 to 65535'),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_invalid_file_is_rejected(text: bytes, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(text, source="f")
    assert str(raised.value).startswith(reason)


def test_single_document_without_kind_is_read_as_manifest() -> None:
    assert parse_manifest_text(YAML).metadata.name == "edge"


def _compile_loaded(**fields: Any) -> Loaded:
    loaded = load(RENDERED)
    servers = (replace(loaded.config.servers[0], **fields),)
    return replace(loaded, config=replace(loaded.config, servers=servers))


def test_missing_files_are_reported(tmp_path: Path) -> None:
    there, locked = tmp_path / "there.pem", tmp_path / "locked"
    there.write_text("x")
    locked.mkdir()
    missing = str(tmp_path / "missing")
    loaded = _compile_loaded(
        starttls=StartTls.ENABLED,
        auth_http_header=(AuthHttpHeader(name="X", value="v"), AuthHttpHeader(name="Y", value_file=missing)),
        ssl_certificate=(CertificateFiles(certificate=str(there), key=missing),),
        ssl_session_ticket_key=(missing,),
        ssl_verify_client=VerifyClient.OPTIONAL,
        ssl_crl=str(locked),
    )
    assert [str(problem) for problem in check_files(loaded.config)] == [
        f"servers[0].auth_http_header: {missing}: there is no such file",
        f"servers[0].ssl_certificate_key: {missing}: there is no such file",
        f"servers[0].ssl_session_ticket_key: {missing}: there is no such file",
        f"servers[0].ssl_crl: {locked}: is a directory",
    ]


def test_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, for whom every file can be read.
    monkeypatch.setattr("os.access", lambda *_: False)
    file = tmp_path / "a"
    file.write_text("x")
    loaded = _compile_loaded(auth_http_header=(AuthHttpHeader(name="Y", value_file=str(file)),))
    assert [problem.reason for problem in check_files(loaded.config)] == [
        f"{file}: cannot be read: permission denied"
    ]


def test_pipe_is_reported_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    loaded = _compile_loaded(auth_http_header=(AuthHttpHeader(name="Y", value_file=str(tmp_path / "pipe")),))
    assert [problem.reason for problem in check_files(loaded.config)] == [
        f"{tmp_path}/pipe: is not a regular file: reading it may never end"
    ]


def test_unused_tls_files_are_not_checked(tmp_path: Path) -> None:
    assert check_files(_compile_loaded(ssl_dhparam="/nowhere").config) == ()
    there = tmp_path / "there.pem"
    there.write_text("x")
    pair = CertificateFiles(certificate=str(there), key=str(there))
    for_clients = _compile_loaded(starttls=StartTls.ENABLED, ssl_certificate=(pair,), ssl_crl="/nowhere")
    assert check_files(for_clients.config) == ()


_NGINX_LIKE = st.text(st.sampled_from("mail{};: #\n\"'\\eventsrvlk01-"), max_size=60)


@given(st.binary(max_size=60) | _NGINX_LIKE.map(str.encode))
def test_arbitrary_content_raises_only_config_errors(text: bytes) -> None:
    with suppress(ConfigError):
        assert load(text).config.servers
