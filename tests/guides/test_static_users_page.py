# SPDX-License-Identifier: Apache-2.0
"""docs/static-users.md and its example are valid, and have the limits of the code."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import yaml

from mailproxy.users import password_hash, password_pool
from mailproxy.users.password_hash import verify_password
from mailproxy.users.user_files import load_users
from mailproxy.users.user_list import UserList
from mailproxy_config.load import load
from mailproxy_config.model import AuthMode
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.guides.blocks import Page
from support.needs import Needs
from support.servers.proxy import ROOT

PAGE: Final = Page("static-users.md")
EXAMPLE: Final = ROOT / "deploy/examples/static-users.yaml"


def test_example_is_valid_and_its_users_log_in(tmp_path: Path) -> None:
    secret, manifest = yaml.safe_load_all(EXAMPLE.read_text())
    loaded = load(EXAMPLE.read_bytes())
    file = tmp_path / "users"
    file.write_text(secret["stringData"]["htpasswd"])
    manifest["spec"]["mail"]["authUserFile"] = {"file": str(file)}
    config = load(yaml.safe_dump(manifest).encode()).config
    assert loaded.config.servers[0].used_user_file == "/etc/mailproxy-refs/secrets/mail-users/htpasswd"
    [compiled] = load_users(config, {}).files.values()
    users = UserList(compiled.fileno())
    for user in (b"bob@example.org", b"eve@example.org"):
        hashed = users.find(user)
        assert hashed is not None
        assert verify_password(hashed, b"change-me")


def test_secret_of_example_is_mounted_in_pods() -> None:
    _, manifest = yaml.safe_load_all(EXAMPLE.read_text())
    objects = render(
        planned(
            Resource.read(
                {**manifest, "metadata": {**manifest["metadata"], "namespace": "mail", "uid": "1"}}
            ),
            Platform(),
        )
    )
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [refs] = [each for each in deployment["spec"]["template"]["spec"]["volumes"] if each["name"] == "refs"]
    assert refs["projected"]["sources"] == [
        {
            "secret": {
                "name": "mail-users",
                "items": [{"key": "htpasswd", "path": "secrets/mail-users/htpasswd"}],
            }
        }
    ]


def test_configurations_of_page_are_valid() -> None:
    [manifest] = [block.text for block in PAGE.blocks if block.language == "yaml"]
    whole = f"apiVersion: mailproxy.dev/v1alpha1\nkind: MailProxy\nmetadata: {{name: a}}\n{manifest}"
    whole += "  servers: [{name: imap, listen: [{port: 143}]}]\n"
    [text] = [block.text for block in PAGE.blocks if block.language == "nginx"]
    nginx = f"mail {{ {text} upstream dovecot {{ server dovecot:143; }} server {{ listen 143; }} }}"
    for source in (whole, nginx):
        loaded = load(source.encode(), source="/etc/nginx.conf")
        assert loaded.notices == ()
        assert loaded.config.servers[0].auth_mode is AuthMode.STATIC


def test_command_of_page_makes_an_accepted_line(needs: Needs) -> None:
    [command] = [block.text for block in PAGE.blocks if "htpasswd -nB" in block.text]
    program, *arguments = command.partition(">>")[0].split()
    arguments[0] += "i"  # from standard input, as there is no terminal
    made = subprocess.run(
        (needs(program), *arguments), input=b"secret", capture_output=True, check=True
    ).stdout
    user, _, hashed = made.strip().partition(b":")
    assert user == b"bob@example.org"
    assert verify_password(hashed, b"secret")
    assert password_hash.hash_cost(hashed).numbers == (10,)


def test_limits_of_page_are_those_of_the_code() -> None:
    limits = (
        f"cost {password_hash.BCRYPT_COSTS[0]} to {password_hash.BCRYPT_COSTS[-1]};",
        f"{password_hash.SHA512_ROUNDS[0]:,} (no `rounds=`) to {password_hash.SHA512_ROUNDS[-1]:,} rounds",
        f"`m` {password_hash.ARGON2_MEMORY[0]:,} to {password_hash.ARGON2_MEMORY[-1]:,} KiB",
        f"`t` 1 to {password_hash.ARGON2_PASSES[-1]}, `p` 1 to {password_hash.ARGON2_LANES[-1]}",
        f"| passwords that are verified or wait | {password_pool.MAX_PENDING} in each worker |",
        f"| threads | {password_pool.THREADS} in each worker |",
    )
    for text in limits:
        assert text in PAGE.text
