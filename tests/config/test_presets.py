# SPDX-License-Identifier: Apache-2.0
"""Presets of servers: their fields, and what the server itself or the mail level has."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import AuthMethod, Protocol, ServerConfig, StartTls
from mailproxy_config.presets import PRESETS

NONE, PLAIN, LOGIN = AuthMethod.NONE, AuthMethod.PLAIN, AuthMethod.LOGIN


def compiled(**server: Any) -> ServerConfig:
    """Return the server block that a server with these fields becomes."""
    mail = {
        "authHttp": "http://auth:9000/",
        "serverName": "mail.example.com",
        "smtpAuth": ["cram-md5"],
        "sslCertificate": [{"secretName": "mail-tls"}],
    }
    body = {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "metadata": {"name": "edge"},
        "spec": {"mail": mail, "servers": [{"name": "one", "listen": [{"port": 25}], **server}]},
    }
    (found,) = compile_proxy(parse_manifest(body)).servers
    return found


@pytest.mark.parametrize(
    ("preset", "methods", "starttls", "has_auth"),
    [
        ("Mx", {NONE}, StartTls.ENABLED, False),
        ("Submission", {PLAIN, LOGIN}, StartTls.ONLY, True),
        ("Submissions", {PLAIN, LOGIN}, StartTls.DISABLED, True),
    ],
)
def test_preset_has_fields_of_usual_server(
    preset: str, methods: set[AuthMethod], starttls: StartTls, has_auth: bool
) -> None:
    server = compiled(preset=preset)
    assert server.protocol is Protocol.SMTP
    assert (server.smtp_auth, server.starttls, server.smtp_auth_command) == (methods, starttls, has_auth)


def test_fields_of_server_replace_those_of_preset() -> None:
    server = compiled(preset="Mx", starttls="Disabled")
    assert (server.starttls, server.smtp_auth) == (StartTls.DISABLED, {NONE})


def test_every_preset_is_tested_and_listed() -> None:
    assert set(PRESETS) == {"Mx", "Submission", "Submissions"}


@pytest.mark.parametrize(
    ("server", "path", "reason"),
    [
        ({"preset": "Mxx"}, "spec.servers[0].preset", "'Mxx' is not one of"),
        ({"preset": 25}, "spec.servers[0].preset", "must be text"),
    ],
)
def test_unknown_preset_is_rejected(server: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compiled(**server)
    (problem,) = [one for one in raised.value.problems if one.path.startswith("spec.servers")]
    assert problem.path == path
    assert reason in problem.reason
