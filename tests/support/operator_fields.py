# SPDX-License-Identifier: Apache-2.0
"""Objects as flat sets of fields, as in server-side apply: lists with keys are maps."""

from __future__ import annotations

from typing import Any

Path = tuple[Any, ...]
Fields = dict[Path, Any]

_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "env": ("name",),
    "ownerReferences": ("uid",),
    "conditions": ("type",),
    "imagePullSecrets": ("name",),
}
_EMPTY_MAP, _EMPTY_LIST = "{}", "[]"


def keys_of(name: str, items: list[Any]) -> tuple[str, ...] | None:
    """Return the key fields of a list's items; ``None`` for an atomic list."""
    if name == "ports" and items and isinstance(items[0], dict):
        return (
            ("containerPort",)
            if "containerPort" in items[0]
            else ("port",)
            if "targetPort" in items[0]
            else None
        )
    return _KEYS.get(name)


def flatten(value: Any, path: Path = ()) -> Fields:
    """Return the leaves of an object by path."""
    if isinstance(value, dict) and value:
        return {
            inner_path: leaf
            for name, inner in value.items()
            for inner_path, leaf in flatten(inner, (*path, name)).items()
        }
    if isinstance(value, list) and value and path:
        keys = keys_of(str(path[-1]), value)
        if keys:
            return {
                inner_path: leaf
                for item in value
                for inner_path, leaf in flatten(
                    item, (*path, ("item", *(item.get(key) for key in keys)))
                ).items()
            }
    if isinstance(value, dict):
        return {path: _EMPTY_MAP} if path else {}
    return {path: value}


def unflatten(fields: Fields) -> dict[str, Any]:
    """Build the object from its leaves."""
    tree: dict[Any, Any] = {}
    for path, leaf in fields.items():
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = leaf
    built = _build(tree)
    assert isinstance(built, dict)
    return built


def _build(node: Any) -> Any:
    if not isinstance(node, dict):
        return {} if node == _EMPTY_MAP else node
    if node and all(isinstance(step, tuple) for step in node):
        return [_build(inner) for inner in node.values()]
    return {step: _build(inner) for step, inner in node.items()}


def managed(fields: Fields) -> dict[str, Any]:
    """Write paths as ``fieldsV1`` does, sufficient for readers of ``f:spec``."""
    tree: dict[str, Any] = {}
    for path in fields:
        node = tree
        for step in path:
            node = node.setdefault(f"k:{step[1:]}" if isinstance(step, tuple) else f"f:{step}", {})
    return tree
