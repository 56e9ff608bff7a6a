# SPDX-License-Identifier: Apache-2.0
"""Finds the fields of ``spec`` that refer to a Secret or ConfigMap, for messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_REFERENCES = {"secretName": "Secret", "secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}


def reference_paths(spec: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the paths of the fields that refer to objects, by kind and name of the object.

    Args:
        spec: ``spec`` as read; values of a wrong type are ignored.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for kind, name, path in _references(spec, "spec"):
        found[kind, name] = (*found.get((kind, name), ()), path)
    return found


def _references(value: object, path: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, f"{path}[{index}]")
    if isinstance(value, Mapping):
        for field, inner in value.items():
            at = f"{path}.{field}"
            name = inner.get("name") if isinstance(inner, Mapping) else inner
            if field in _REFERENCES and isinstance(name, str):
                yield _REFERENCES[field], name, at
            else:
                yield from _references(inner, at)
