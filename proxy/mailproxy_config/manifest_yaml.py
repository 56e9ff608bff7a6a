# SPDX-License-Identifier: Apache-2.0
"""Writes a manifest as YAML that a person likes to read and that ``kubectl`` reads the same way."""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from mailproxy_config.yaml_reader import IMPLICIT

from .manifest import MailProxyManifest

_WIDTH: Final = 110
_SHORT: Final = 72


class _ManifestDumper(yaml.SafeDumper):
    """Block style, lists indented, short lists and objects on one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their field."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out, every time."""
        return True


def _is_plain(value: Any) -> bool:  # noqa: ANN401 -- any YAML value
    return not isinstance(value, (dict, list))


def _object(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.Node:
    short = all(map(_is_plain, value.values())) and len(json.dumps(value)) <= _SHORT
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=short)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    short = all(map(_is_plain, value)) and len(json.dumps(value)) <= _SHORT
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_ManifestDumper.add_representer(dict, _object)
_ManifestDumper.add_representer(list, _list)
for _tag, _grammar, _first in IMPLICIT:
    # Words that kubectl takes for something else than text must stand in quotes.
    _ManifestDumper.add_implicit_resolver(_tag, _grammar, _first)


def to_manifest_yaml(manifest: MailProxyManifest) -> str:
    """The YAML of a manifest: what was written, in the order in which it was written."""
    body = dict(manifest.raw)
    return yaml.dump(body, Dumper=_ManifestDumper, sort_keys=False, width=_WIDTH, allow_unicode=True)
