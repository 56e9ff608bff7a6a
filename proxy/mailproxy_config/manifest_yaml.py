# SPDX-License-Identifier: Apache-2.0
"""Reads and writes YAML as ``kubectl`` does.

``kubectl`` converts YAML to JSON with a Go library whose rules for YAML 1.1 differ from
PyYAML's (``y``, ``1:30``, ``0o17``, dates, ...).  This loader resolves words as ``kubectl``
does, so that a file means the same to the proxy and to the cluster.  Duplicate keys are
errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

import yaml

from mailproxy_config.decode import (
    MAX_FILE_BYTES,
    MAX_LEVELS,
    MAX_TOKENS,
    MAX_VALUES,
    too_deep,
    too_large,
    too_many_tokens,
)
from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.manifest import MailProxyManifest
from mailproxy_config.schema import join_path

_MAX_DIGITS: Final = 40
_EXACT_INTEGER: Final = 2**53
_TRUE: Final = frozenset({"y", "yes", "on", "true"})
_BOOLEANS: Final = "y|Y|yes|Yes|YES|on|On|ON|true|True|TRUE|n|N|no|No|NO|off|Off|OFF|false|False|FALSE"
_BASES: Final = (
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16),
    (re.compile(r"[-+]?0b[01]+"), 2),
    (re.compile(r"[-+]?0o?[0-7]+"), 8),
    (re.compile(r"[-+]?[0-9]+"), 10),
)

_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class _ManifestLoader(yaml.SafeLoader):
    """Resolves plain scalars as ``kubectl``; other tags are errors.

    Tokens are counted in the scanner, over all documents: directives make no events, and nodes
    are complete only at the end of a document.
    """

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 -- a class attribute in PyYAML
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens = self._levels = 0
        super().__init__(text)

    def fetch_more_tokens(self) -> None:
        """Scan the next token.

        Raises:
            ConfigError: There are more than ``MAX_TOKENS``.
        """
        self._tokens += 1
        if self._tokens > MAX_TOKENS:
            raise too_many_tokens(self._source, self.line + 1)
        super().fetch_more_tokens()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one value.

        Raises:
            ConfigError: It is nested too deeply.
        """
        self._levels += 1
        if self._levels > MAX_LEVELS:
            raise too_deep(self._source)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        return node


def load_documents(text: str, *, source: str = "") -> list[Any]:
    """Read all documents of a YAML text; empty ones are left out.

    Args:
        text: YAML 1.1 with anchors, merge keys and so on.
        source: The name of the text in errors.

    Raises:
        ConfigError: It is not valid YAML, has duplicate keys, is too large or nested too deeply.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError([Problem(source, f"is larger than {MAX_FILE_BYTES} bytes")])
    try:
        return [found for found in _documents(text, source) if found is not None]
    except yaml.MarkedYAMLError as error:
        # The text of the error quotes the line, which may contain a secret.
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if source and mark else source
        line = "" if source or mark is None else f"line {mark.line + 1}: "
        raise ConfigError(
            [Problem(where, f"{line}not valid YAML: {error.problem or error.context}")]
        ) from None
    except yaml.reader.ReaderError as error:
        reason = f"not valid YAML: character U+{error.character:04X} is not allowed"
        raise ConfigError([Problem(source, reason)]) from None


def _documents(text: str, source: str) -> Iterator[Any]:
    loader = _ManifestLoader(text, source)
    seen = 0
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # noqa: S101 -- check_node was true
            problems = Problems()
            seen = _check_duplicates(node, source, problems, seen)
            problems.raise_if_any()
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _check_duplicates(root: yaml.Node, source: str, problems: Problems, seen: int) -> int:
    """Report duplicate keys, and count values.

    Args:
        root: A document.
        source: The name of its file.
        problems: Collects the errors.
        seen: Number of values in earlier documents; aliases count each time.

    Returns:
        The number of values including this document.

    Raises:
        ConfigError: With its aliases it is too large or nested too deeply.
    """
    waiting: list[tuple[yaml.Node, str, int]] = [(root, "", 1)]
    while waiting:
        node, path, level = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise too_large(source)
        if level > MAX_LEVELS:
            raise too_deep(source)
        if isinstance(node, yaml.MappingNode):
            _report_duplicate_keys(node, path, problems)
            # A key that is not a scalar becomes JSON text, in which aliases are repeated.
            waiting += (
                (key, path, level + 1) for key, _ in node.value if not isinstance(key, yaml.ScalarNode)
            )
            waiting += ((value, join_path(path, _key(key)), level + 1) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            waiting += ((item, f"{path}[{index}]", level + 1) for index, item in enumerate(node.value))
    return seen


def _report_duplicate_keys(node: yaml.MappingNode, path: str, problems: Problems) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = _key(key), key.start_mark.line + 1
        if name in lines and name != "<<":
            problems.add(join_path(path, name), f"is duplicate, in line {lines[name]} and line {line}")
        lines.setdefault(name, line)


def _key(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "?"


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Iterator[dict[str, Any]]:
    """A mapping with text keys, as in JSON; yielded empty first, so that anchors can refer to it."""
    found: dict[str, Any] = {}
    yield found
    loader.flatten_mapping(node)
    for node_key, value in node.value:
        key = loader.construct_object(node_key, deep=True)
        name = key if isinstance(key, str) else json.dumps(key, default=str)
        found[name] = loader.construct_object(value)


def _sequence(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> Iterator[list[Any]]:
    found: list[Any] = []
    yield found
    found.extend(loader.construct_object(item) for item in node.value)


def _unknown(_: yaml.SafeLoader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, f"unknown tag {node.tag!r}", node.start_mark)


def _number(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float | str:
    """A number, or the text if it is not one."""
    text = str(node.value).replace("_", "")
    if len(text) > _MAX_DIGITS:
        return str(node.value)
    for grammar, base in _BASES:
        if grammar.fullmatch(text):
            sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
            bare = digits[2:] if base in {2, 16} else digits.removeprefix("0o") if base == 8 else digits
            return int(sign + bare, base)
    if not _FLOAT.fullmatch(text):
        return str(node.value)
    number = float(text)
    # JSON has only one type of number: 1e3 becomes 1000.
    return int(number) if abs(number) < _EXACT_INTEGER and number.is_integer() else number


def _checked(construct: Callable[..., Any]) -> Callable[[yaml.SafeLoader, yaml.Node], Any]:
    """The constructor for its own kind of node only: a tag can precede any node."""
    kind = {_mapping: yaml.MappingNode, _sequence: yaml.SequenceNode}.get(construct, yaml.ScalarNode)

    def checked(loader: yaml.SafeLoader, node: yaml.Node) -> Any:  # noqa: ANN401 -- whatever is built
        return construct(loader, node) if isinstance(node, kind) else _unknown(loader, node)

    return checked


IMPLICIT: Final[tuple[tuple[str, re.Pattern[str], list[str]], ...]] = (
    ("tag:yaml.org,2002:bool", re.compile(f"^(?:{_BOOLEANS})$"), list("yYnNtTfFoO")),
    ("tag:yaml.org,2002:null", re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"]),
    ("!number", re.compile("^[-+]?[.0-9][-+.0-9a-fA-FxobeE_]*$"), list("-+.0123456789")),
)
"""How plain scalars are resolved: tag, pattern, and possible first characters."""


for _name, _grammar, _first in IMPLICIT:
    _ManifestLoader.add_implicit_resolver(_name, _grammar, _first)


_CONSTRUCTORS: Final[Mapping[str, Callable[..., Any]]] = {
    "!number": _number,
    "tag:yaml.org,2002:int": _number,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:bool": lambda _, node: str(node.value).lower() in _TRUE,
    "tag:yaml.org,2002:null": lambda _, __: None,
    "tag:yaml.org,2002:str": lambda _, node: str(node.value),
    "tag:yaml.org,2002:map": _mapping,
    "tag:yaml.org,2002:seq": _sequence,
}

for _tag, _construct in _CONSTRUCTORS.items():
    _ManifestLoader.add_constructor(_tag, _checked(_construct))

_ManifestLoader.add_constructor(None, _unknown)


_WIDTH: Final = 110
_SHORT: Final = 72


class _ManifestDumper(yaml.SafeDumper):
    """Block style, lists indented, short lists and objects on one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their field."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values each time."""
        return True


def _is_short(value: dict[str, Any] | list[Any]) -> bool:
    """Whether an object or list fits on one line."""
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(each, (dict, list)) for each in items) and len(json.dumps(value)) <= _SHORT


_ManifestDumper.add_representer(
    dict,
    lambda dumper, value: dumper.represent_mapping(
        "tag:yaml.org,2002:map", value.items(), flow_style=_is_short(value)
    ),
)

_ManifestDumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=_is_short(value)
    ),
)

for _tag, _grammar, _first in IMPLICIT:
    # Plain scalars that kubectl does not read as text are quoted.
    _ManifestDumper.add_implicit_resolver(_tag, _grammar, _first)


def to_manifest_yaml(manifest: MailProxyManifest) -> str:
    """Format a manifest as YAML, with its fields in the original order."""
    body = dict(manifest.raw)
    return yaml.dump(body, Dumper=_ManifestDumper, sort_keys=False, width=_WIDTH, allow_unicode=True)
