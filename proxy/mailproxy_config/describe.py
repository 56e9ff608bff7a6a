# SPDX-License-Identifier: Apache-2.0
"""Words about a directive for people who read the schema."""

from __future__ import annotations

import json

from mailproxy_config.value_types import Raw


def explained(name: str, meaning: str, default: Raw, *, is_ours: bool = False) -> str:
    """Write what ``kubectl explain`` shows of a directive or a parameter.

    Args:
        name: nginx's name for it.
        meaning: One sentence.
        default: The built-in default; it cannot stand in the schema, where it would defeat inheritance.
        is_ours: Whether nginx does not have it.
    """
    unless_set = shown_default(default)
    where = f"Not in nginx; in an nginx.conf for MailProxy: {name}" if is_ours else f"In nginx: {name}"
    return f"{meaning} {where}." + (f" Default: {unless_set}." if unless_set else "")


def shown_default(value: Raw) -> str:
    """A default as YAML would show it; nothing where there is none."""
    if value in (None, "", []):
        return ""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {inner}' for name, inner in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)
