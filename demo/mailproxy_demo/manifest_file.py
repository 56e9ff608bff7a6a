# SPDX-License-Identifier: Apache-2.0
"""The manifest that ``local`` watches: a YAML file with one MailProxy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.manifest_yaml import load_documents
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest


def read_resource(text: str, source: str) -> Manifest:
    """Return the one MailProxy of a YAML text.

    Raises:
        ConfigError: It is not YAML, or does not have exactly one MailProxy.
    """
    found: list[Any] = load_documents(text, source=source)
    resources = [one for one in found if isinstance(one, dict) and one.get("kind") == names.KIND]
    if len(resources) != 1:
        raise ConfigError([Problem(source, f"has {len(resources)} resources of kind {names.KIND}, not one")])
    body: Manifest = resources[0]
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        metadata.setdefault("namespace", "default")
    return body


class ManifestFile:
    """A manifest in a file that can change at any time.

    Args:
        path: The file.
        adapt: Applied to the manifest each time it is read.
    """

    def __init__(self, path: Path, adapt: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
        self._path = path
        self._adapt = adapt
        self._last_read: str | None = None

    def read(self) -> Manifest | None:
        """Return the manifest if the file has changed since the last call; else ``None``.

        Raises:
            ConfigError: The file cannot be read, or is not a manifest; raised once for the same content.
        """
        text, failure = "", None
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            failure = ConfigError([Problem(str(self._path), reason or "cannot be read")])
        marker = str(failure) if failure else text
        if marker == self._last_read:
            return None
        self._last_read = marker
        if failure:
            raise failure
        return self._adapt(read_resource(text, str(self._path)))
