# SPDX-License-Identifier: Apache-2.0
"""The file that `local` watches: one MailProxy manifest, read as kubectl would read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.yaml_reader import documents
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest


def read_resource(text: str, source: str) -> Manifest:
    """Read the one MailProxy of a YAML text.

    Raises:
        ConfigError: It is no YAML, or there is not exactly one.
    """
    found: list[Any] = documents(text, source=source)
    resources = [one for one in found if isinstance(one, dict) and one.get("kind") == names.KIND]
    if len(resources) != 1:
        raise ConfigError(
            [Problem(source, f"holds {len(resources)} resources of kind {names.KIND}, not one")]
        )
    body: Manifest = resources[0]
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        metadata.setdefault("namespace", "default")
    return body


class FileSource:
    """A manifest in a file that somebody edits.

    Args:
        path: The file.
        adapt: Applied to every resource that is read.
    """

    def __init__(self, path: Path, adapt: Callable[[Manifest], Manifest] = lambda body: body) -> None:
        self._path = path
        self._adapt = adapt
        self._seen: str | None = None

    def read(self) -> Manifest | None:
        """Return the resource if the file has changed since the last call.

        Raises:
            ConfigError: The file cannot be read, or holds no resource; told once per content.
        """
        text, failure = "", None
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            failure = ConfigError([Problem(str(self._path), reason or "cannot be read")])
        marker = str(failure) if failure else text
        if marker == self._seen:
            return None
        self._seen = marker
        if failure:
            raise failure
        return self._adapt(read_resource(text, str(self._path)))
