# SPDX-License-Identifier: Apache-2.0
"""Mounts the Secrets of ``sslCertificateSelector``: one directory for each, the oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from mailproxy_config.secret_refs import Mounts, SelectorRef
from mailproxy_operator.api.kinds import Manifest

MAX_SELECTED: Final = 2000
"""Maximum number of Secrets that one selector mounts: a pod is an object of at most 1.5 MiB."""
_KEYS: Final = ("tls.crt", "tls.key")


@dataclass(frozen=True, slots=True, order=True)
class SelectedSecret:
    """A Secret: when it was created (RFC 3339), and its name."""

    created: str
    name: str

    @property
    def directory(self) -> str:
        """The name of its directory; in the order of these names, the oldest comes first."""
        stamp = "".join(each for each in self.created if each.isalnum()) or "0"
        return f"{stamp}-{self.name}"


Selection: TypeAlias = Mapping[SelectorRef, tuple[SelectedSecret, ...]]
"""The Secrets of each selector, the oldest first."""


def sources(selection: Selection) -> Iterator[Manifest]:
    """Yield the sources of the projected volume.

    They are optional: a Secret that was deleted must not keep pods from starting for all others.
    """
    mounts = Mounts("")
    for selector, secrets in selection.items():
        folder = mounts.selected(selector).removeprefix("/")
        for secret in secrets[:MAX_SELECTED]:
            items = [{"key": key, "path": f"{folder}/{secret.directory}/{key}"} for key in _KEYS]
            yield {"secret": {"name": secret.name, "optional": True, "items": items}}


def notices(selection: Selection) -> Iterator[str]:
    """Yield notices about selectors without Secrets, or with too many."""
    for selector, secrets in selection.items():
        labels = ", ".join(f"{name}={value}" for name, value in selector.labels)
        if not secrets:
            yield f"sslCertificateSelector {labels}: no Secret of type kubernetes.io/tls has these labels"
        elif len(secrets) > MAX_SELECTED:
            number = f"{len(secrets)} Secrets, of which the oldest {MAX_SELECTED} are mounted"
            yield f"sslCertificateSelector {labels}: {number}"
