# SPDX-License-Identifier: Apache-2.0
"""The configuration file, and the files that a configuration refers to."""

from __future__ import annotations

from pathlib import Path

from mailproxy.tls.inputs import tls_files
from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ProxyConfig


def read(path: Path, *, once: bool = False) -> bytes:
    """Read a configuration file, as far as a configuration may be long and one byte more.

    Args:
        path: The file.
        once: It is never read again, so that it may be a pipe.

    Raises:
        ConfigError: It cannot be read, or is a pipe or a device, which a reload could not read again.
    """
    if not once and path.exists() and not path.is_file() and not path.is_dir():
        reason = "is not a regular file: run reads it again at every reload"
        raise ConfigError([Problem(str(path), reason)])
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error


def referenced(config: ProxyConfig) -> frozenset[Path]:
    """Name every file whose contents matter to a configuration: certificates, keys, header values."""
    tls = (path for server in config.servers for path in tls_files(server))
    headers = (header.value_file for server in config.servers for header in server.auth_http_header)
    return frozenset(Path(path) for path in (*tls, *headers) if path is not None)
