# SPDX-License-Identifier: Apache-2.0
"""A configuration as canonical JSON: the same configuration, the same bytes.

This is what the operator renders and the proxy loads.  It is a closed format:
every field stands in it, none is left to a default, and a format version says
what the fields are.  ``rendered`` reads it back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, Final

from .model import ProxyConfig

FORMAT: Final = "mailproxy.dev/proxy-configuration"
FORMAT_VERSION: Final = 1


def dump(config: ProxyConfig, *, generation: int = 0) -> bytes:
    """Write a configuration.

    Args:
        config: What to write.  A ``server_name`` that is not set stays empty.
        generation: The generation of the resource it was made of; no part of the hash.
    """
    document = {
        "format": FORMAT,
        "formatVersion": FORMAT_VERSION,
        "generation": generation,
        "config": _plain(config),
    }
    return _canonical(document) + b"\n"


def config_hash(config: ProxyConfig) -> str:
    """SHA-256 of the configuration as ``dump`` writes it, without the generation; in hexadecimal."""
    return hashlib.sha256(_canonical({"formatVersion": FORMAT_VERSION, "config": _plain(config)})).hexdigest()


def _canonical(document: object) -> bytes:
    """One spelling: sorted names, no spaces to choose, ASCII only."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode()


def _plain(value: Any) -> Any:  # noqa: ANN401 -- anything that stands in a configuration
    """A value as JSON knows it; sets are sorted, and whole floats are integers."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    match value:
        case StrEnum():
            return str(value)
        case frozenset():
            return sorted(map(str, value))
        case tuple():
            return [_plain(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value
