# SPDX-License-Identifier: Apache-2.0
"""``proxy_auth``, ``proxy_master_user`` and ``proxy_auth_token`` in manifests and in an ``nginx.conf``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.load import check_files, load
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.rendered import dump, parse_rendered
from mailproxy_config.secret_refs import Reference, ReferenceKind
from mailproxy_config.upstream_login import ProxyAuth, ProxyAuthToken, ProxyMasterUser, TokenGrant
from mailproxy_config.upstream_login_directives import check_token_url
from support.config_bodies import body, server

TOKEN: dict[str, Any] = {
    "tokenUrl": "https://login.example/token",
    "clientId": "app",
    "clientSecretFrom": {"secretKeyRef": {"name": "app", "key": "secret"}},
}


def test_secrets_are_mounted_and_referred_to_by_their_paths() -> None:
    master = {"user": "proxy", "passwordFrom": {"secretKeyRef": {"name": "master", "key": "password"}}}
    manifest = parse_manifest(body(server(proxyMasterUser=master, proxyAuthToken=TOKEN)))
    [compiled] = compile_proxy(manifest).servers
    root = "/etc/mailproxy-refs/secrets"
    assert compiled.proxy_master_user == ProxyMasterUser(
        user="proxy", password_file=f"{root}/master/password"
    )
    assert compiled.proxy_auth_token == ProxyAuthToken(
        token_url="https://login.example/token", client_id="app", client_secret_file=f"{root}/app/secret"
    )
    assert collect_references(manifest) == (
        Reference(ReferenceKind.SECRET, "app", ("secret",)),
        Reference(ReferenceKind.SECRET, "master", ("password",)),
    )
    assert compiled.upstream_login_files == (
        ("proxy_master_user", f"{root}/master/password"),
        ("proxy_auth_token", f"{root}/app/secret"),
    )


def test_rendered_configuration_has_paths_only() -> None:
    config = compile_proxy(parse_manifest(body(server(proxyAuthToken=TOKEN))))
    assert parse_rendered(json.loads(dump(config)))[0] == config


def test_server_replaces_the_list_of_the_mail_level() -> None:
    manifest = parse_manifest(
        body(
            server("a", 143, proxyAuth=["Plain"]),
            server("b", 993),
            mail={"authHttp": "a", "proxyAuth": ["Login", "Native"]},
        )
    )
    first, second = compile_proxy(manifest).servers
    assert first.proxy_auth == (ProxyAuth.PLAIN,)
    assert second.proxy_auth == (ProxyAuth.LOGIN, ProxyAuth.NATIVE)


def nginx(directive: str, folder: Path) -> Any:
    text = f"mail {{ auth_http a:9; server {{ listen 143; {directive} }} }}"
    return load(text.encode(), source=str(folder / "nginx.conf")).config.servers[0]


def test_nginx_style_directives(tmp_path: Path) -> None:
    read = nginx(
        "proxy_auth XOAUTH2 native; proxy_auth_require_tls on; proxy_master_user p master.txt separator=%;"
        "proxy_auth_token https://t/x client_id=app refresh_token_file=r.txt grant=refresh_token 'scope=a';",
        tmp_path,
    )
    assert read.proxy_auth == (ProxyAuth.XOAUTH2, ProxyAuth.NATIVE)
    assert read.proxy_auth_require_tls is True
    assert read.proxy_master_user == ProxyMasterUser(
        user="p", password_file=str(tmp_path / "master.txt"), separator="%"
    )
    assert read.proxy_auth_token == ProxyAuthToken(
        token_url="https://t/x",
        client_id="app",
        scope="a",
        grant=TokenGrant.REFRESH_TOKEN,
        refresh_token_file=str(tmp_path / "r.txt"),
    )


@pytest.mark.parametrize(
    ("directive", "reason"),
    [
        ("proxy_auth digest;", 'invalid value "digest", it must be one of native'),
        ("proxy_auth plain plain;", "each mechanism may be listed once"),
        ("proxy_master_user proxy;", 'invalid number of arguments in "proxy_master_user" directive'),
        ("proxy_master_user proxy /m sep=x;", "invalid parameter: sep"),
        ("proxy_auth_token https://t secret=hunter2;", "invalid parameter: secret"),
        ("proxy_auth_token https://t scope=x;", "client_id is required"),
        ("proxy_auth_token https://t client_id=a client_id=b;", "invalid parameter: client_id"),
        ("proxy_auth_token https://t client_id=a grant=password;", "grant must be one of"),
        ("proxy_auth_token http://t client_id=a client_secret_file=/s;", "must begin with https://"),
        ("proxy_auth_token https://t client_id=a;", "ClientCredentials needs clientSecretFrom"),
    ],
)
def test_invalid_nginx_style_directive_is_rejected(tmp_path: Path, directive: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        nginx(directive, tmp_path)
    shown = str(caught.value)
    assert reason in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "url",
    ["https://t", "https://t:8443/x?y=z", "http://localhost/x", "http://127.3.2.1:80/", "http://[::1]:5/"],
)
def test_token_url(url: str) -> None:
    check_token_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://t/", "http://localhost.example/", "http://127.0.0.1.example/", "https://", "https://u:p@t/",
        "https://t/#x", "https://t:99999/", "ftp://t", "http://10.0.0.1/", "http://[::2]/",
    ],
)  # fmt: skip
def test_token_url_that_is_not_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|ort"):
        check_token_url(url)


def test_missing_file_of_a_secret_is_reported(tmp_path: Path) -> None:
    read = load(
        f"mail {{ auth_http a:9; server {{ listen 143; proxy_master_user p {tmp_path}/m; }} }}".encode()
    )
    [problem] = check_files(read.config, read.kind)
    assert (problem.path, "there is no such file" in problem.reason) == (
        "servers[0].proxy_master_user", True,
    )  # fmt: skip
