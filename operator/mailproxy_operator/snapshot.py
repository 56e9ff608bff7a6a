# SPDX-License-Identifier: Apache-2.0
"""Everything there is, read at once: what a resync looks at instead of asking for each resource."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mailproxy_operator import names
from mailproxy_operator.cluster import Key
from mailproxy_operator.kinds import MAIL_PROXY, Kind, Manifest


class Snapshot:
    """The objects of every MailProxy, as they were a moment ago.

    It may be out of date by the time it is used.  That does no harm: whatever
    changes wakes its owner, who then looks for itself.

    Args:
        objects: By kind; what they are stands beside them, since items of a list do not say.
    """

    def __init__(self, objects: Mapping[Kind, Iterable[Manifest]]) -> None:
        self._named: dict[tuple[Kind, Key], Manifest] = {}
        self._of: dict[tuple[Kind, Key], list[Manifest]] = {}
        for kind, found in objects.items():
            for one in found:
                metadata = one["metadata"]
                self._named[kind, Key(metadata["namespace"], metadata["name"])] = one
                instance = Key(metadata["namespace"], names.instance_of(metadata.get("labels") or {}))
                self._of.setdefault((kind, instance), []).append(one)

    def resources(self) -> dict[Key, Manifest]:
        """Every MailProxy."""
        return {key: one for (kind, key), one in self._named.items() if kind is MAIL_PROXY}

    def of(self, kind: Kind) -> list[Manifest]:
        """Every object of a kind."""
        return [one for (its, _), one in self._named.items() if its is kind]

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object."""
        return self._named.get((kind, key))

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the objects of one MailProxy: the labels name it."""
        found = self._of.get((kind, Key(namespace, names.instance_of(labels))), [])
        return [one for one in found if labels.items() <= (one["metadata"].get("labels") or {}).items()]
