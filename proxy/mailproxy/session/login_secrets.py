# SPDX-License-Identifier: Apache-2.0
"""Reads the secrets for logins at upstreams from their files."""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.types import LoginSecrets, Secret
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig

MAX_SECRET: Final = 64 * 1024
"""Bytes of a file with a secret that are read."""


def read_login_secrets(config: ServerConfig) -> LoginSecrets:
    """Read the secrets of one server.

    Raises:
        ConfigError: A file cannot be read, or is empty.
    """
    master = config.proxy_master_user
    if master is None:
        return LoginSecrets()
    return LoginSecrets(read_secret(config.name, "proxy_master_user", master.password_file))


def read_secret(server: str, directive: str, path: str) -> Secret:
    """Read a secret from a file, without one line end at its end.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SECRET).removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        reason = f"cannot read {path}: {error.strerror}"
        raise ConfigError([Problem(f"servers[{server}].{directive}", reason)]) from error
    if not data:
        raise ConfigError([Problem(f"servers[{server}].{directive}", f"{path} is empty")])
    return Secret(data)
