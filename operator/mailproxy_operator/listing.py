# SPDX-License-Identifier: Apache-2.0
"""What a watch lists when it begins anew, compared with what was known: that is what changed in the gap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mailproxy_operator.cluster import Key
from mailproxy_operator.kinds import Kind, Manifest


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list.

    Attributes:
        namespace: Which is listed; empty for all of them.
    """

    kind: Kind
    namespace: str
    items: Sequence[Manifest]
    is_first: bool = True
    is_last: bool = True


@dataclass(slots=True)
class _Known:
    """The objects of one watch: version and owner by namespace and name.

    Attributes:
        found: What the list that is being read has so far.
        is_listed: Whether it was listed to its end once.
    """

    objects: dict[Key, tuple[str, Key]] = field(default_factory=dict)
    found: dict[Key, tuple[str, Key]] = field(default_factory=dict)
    is_listed: bool = False


class Listing:
    """Remembers the versions of the objects of some watches.

    Args:
        owner: Names the MailProxy that an object belongs to; one without a name belongs to nobody.
    """

    def __init__(self, owner: Callable[[Manifest], Key]) -> None:
        self._owner = owner
        self._known: dict[tuple[Kind, str], _Known] = {}
        self._baseline: dict[Kind, dict[Key, tuple[str, Key]]] = {}

    def begin_with(self, kind: Kind, objects: Iterable[Manifest]) -> None:
        """Compare the first list of a kind with these: they were read before its watch began."""
        if not any(listed is kind for listed, _ in self._known):
            self._baseline[kind] = {_at(one): (_version(one), self._owner(one)) for one in objects}

    def seen(self, kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
        """Note an event of a watch."""
        at = _at(manifest)
        for namespace in (at.namespace, ""):
            known = self._known.get((kind, namespace))
            if known is not None and is_deleted:
                known.objects.pop(at, None)
            elif known is not None:
                known.objects[at] = (_version(manifest), self._owner(manifest))

    def page(self, page: Page) -> Iterator[tuple[Key, Manifest | None]]:
        """Read a page of a list.

        Returns:
            What has changed since it was seen last: its owner, and the object; ``None`` for one that is
            gone. Nothing for the first list of a watch, where there is nothing to begin with.
        """
        known = self._known.get((page.kind, page.namespace)) or self._new(page.kind, page.namespace)
        if page.is_first:
            known.found = {}
        for one in page.items:
            at, state = _at(one), (_version(one), self._owner(one))
            known.found[at] = state
            if known.is_listed and known.objects.get(at) != state:
                yield state[1], one
        if page.is_last:
            gone = known.objects.keys() - known.found.keys() if known.is_listed else ()
            yield from [(known.objects[at][1], None) for at in gone]
            known.objects, known.found, known.is_listed = known.found, {}, True

    def _new(self, kind: Kind, namespace: str) -> _Known:
        begun = self._baseline.get(kind)
        known = _Known(is_listed=begun is not None)
        known.objects = {at: one for at, one in (begun or {}).items() if namespace in ("", at.namespace)}
        self._known[kind, namespace] = known
        return known


def _at(manifest: Manifest) -> Key:
    return Key(str(manifest["metadata"].get("namespace", "")), str(manifest["metadata"]["name"]))


def _version(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("resourceVersion", ""))
