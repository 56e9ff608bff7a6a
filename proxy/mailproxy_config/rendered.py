# SPDX-License-Identifier: Apache-2.0
"""Reads what ``dump`` wrote, as strictly as the format is closed.

Types come from the model itself.  Beyond them, values are checked as a
manifest's are: whoever edits the file by hand gets the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from mailproxy_config.schema import dotted, encodable, kind_of
from mailproxy_config.validate_rendered import note_unsound

from .dump import FORMAT, FORMAT_VERSION
from .errors import ConfigError, Problem, Problems
from .limits import check_json_text, check_levels, too_deep
from .model import ProxyConfig

T = TypeVar("T")
_LARGEST: Final = 1e15
_ENVELOPE: Final = ("format", "formatVersion", "generation", "config")
_SCALARS: Final[Mapping[type, str]] = {bool: "a boolean", int: "a whole number", str: "text"}


class _Unreadable(Exception):
    """A value of another type than the model wants; the problem has been noted."""


def parse_json(text: str, source: str = "") -> object:
    """Read JSON in which no name stands twice.

    Raises:
        ConfigError: It is no such JSON, or larger or deeper than ``limits`` allows.
    """
    check_json_text(text, source)
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(source, f"not valid JSON: {error.msg} in line {error.lineno}")]) from None
    except RecursionError:
        raise too_deep(source) from None
    except ValueError as error:
        raise ConfigError([Problem(source, f"not valid JSON: {error}")]) from None
    check_levels(document, source)
    return document


def parse_rendered(document: object) -> tuple[ProxyConfig, int]:
    """Read a rendered configuration.

    Returns:
        The configuration, and the generation it was made of.

    Raises:
        ConfigError: With everything in it that is not as ``dump`` writes it.
    """
    problems = Problems()
    if not isinstance(document, Mapping):
        raise ConfigError([Problem("", f"must be an object, not {kind_of(document)}")])
    for name in document.keys() - set(_ENVELOPE):
        problems.add(name[:64], "unknown field")
    version = document.get("formatVersion")
    if document.get("format") != FORMAT:
        problems.add("format", f"must be {FORMAT}")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        problems.add(
            "formatVersion", f"{str(version)[:20]} is not {FORMAT_VERSION}, the one this program reads"
        )
    problems.raise_if_any()
    generation = document.get("generation")
    if isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
        problems.add("generation", "must be a whole number")
    config = _read_config(document.get("config"), problems)
    problems.raise_if_any()
    assert config is not None and isinstance(generation, int)  # noqa: S101, PT018 -- else there was a problem
    return config, generation


def _read_config(value: object, problems: Problems) -> ProxyConfig | None:
    try:
        config = _dataclass(ProxyConfig, value, "config", problems)
    except _Unreadable:
        return None
    note_unsound(config, problems)
    return config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = _repeated(name for name, _ in pairs)
        raise ValueError(f"{twice[:64]!r} stands twice in one object")
    return found


def _repeated(names: Iterable[str]) -> str:
    """The first name that stands there a second time; one of them must."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError(names)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _types(kind: type, _known: dict[type, Mapping[str, Any]] = {}) -> Mapping[str, Any]:  # noqa: B006 -- kept
    """The resolved types of a dataclass's fields."""
    if kind not in _known:
        _known[kind] = get_type_hints(kind)
    return _known[kind]


def _dataclass(kind: type[T], value: object, path: str, problems: Problems) -> T:
    """A dataclass of the model, every field given and none unknown."""
    if not isinstance(value, Mapping):
        raise _noted(path, f"must be an object, not {kind_of(value)}", problems)
    types = _types(kind)
    before = len(problems)
    for name in value.keys() - types.keys():
        problems.add(dotted(path, name), "unknown field")
    found: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        here = dotted(path, field.name)
        if field.name not in value:
            problems.add(here, "is required")
            continue
        try:
            found[field.name] = _read(types[field.name], value[field.name], here, problems)
        except _Unreadable:
            continue
    if len(problems) > before:
        raise _Unreadable
    return kind(**found)


def _noted(path: str, reason: str, problems: Problems) -> _Unreadable:
    problems.add(path, reason)
    return _Unreadable()


def _read(kind: Any, value: object, path: str, problems: Problems) -> Any:  # noqa: ANN401 -- a type, and one of it
    """A value of any type that the model uses."""
    kind = getattr(kind, "__supertype__", kind)
    origin = get_origin(kind)
    if origin in {UnionType, Union}:
        inner = next(each for each in get_args(kind) if each is not NoneType)
        return None if value is None else _read(inner, value, path, problems)
    if origin is not None:
        return _READ_LIST[origin](kind, value, path, problems)
    if kind is float:
        return _float(value, path, problems)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _word(kind, value, path, problems)
    if kind in _SCALARS:
        return _scalar(kind, value, path, problems)
    return _dataclass(kind, value, path, problems)


def _scalar(kind: type, value: object, path: str, problems: Problems) -> object:
    if type(value) is not kind:
        raise _noted(path, f"must be {_SCALARS[kind]}, not {kind_of(value)}", problems)
    if isinstance(value, str) and not encodable(value):
        raise _noted(path, "is not valid Unicode text", problems)
    return value


def _float(value: object, path: str, problems: Problems) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _noted(path, f"must be a number, not {kind_of(value)}", problems)
    # 1e999 is valid JSON, and infinity in Python; integers can be too long for a float.
    if not -_LARGEST < value < _LARGEST:
        raise _noted(path, "is out of range", problems)
    return float(value)


def _word(kind: type[StrEnum], value: object, path: str, problems: Problems) -> StrEnum:
    if not isinstance(value, str) or value not in set(map(str, kind)):
        raise _noted(path, f"must be one of {', '.join(kind)}", problems)
    return kind(value)


def _items(value: object, path: str, problems: Problems) -> list[Any]:
    if not isinstance(value, list):
        raise _noted(path, f"must be a list, not {kind_of(value)}", problems)
    return value


def _set(kind: Any, value: object, path: str, problems: Problems) -> frozenset[Any]:  # noqa: ANN401 -- a generic type
    items = _items(value, path, problems)
    (inner,) = get_args(kind)
    return frozenset(_read(inner, item, f"{path}[{index}]", problems) for index, item in enumerate(items))


def _tuple(kind: Any, value: object, path: str, problems: Problems) -> tuple[Any, ...]:  # noqa: ANN401 -- a generic type
    items = _items(value, path, problems)
    inner = get_args(kind)
    if inner[-1] is not Ellipsis and len(inner) != len(items):
        raise _noted(path, f"must have {len(inner)} items", problems)
    kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
    found, before = [], len(problems)
    for index, (each, item) in enumerate(zip(kinds, items, strict=True)):
        try:
            found.append(_read(each, item, f"{path}[{index}]", problems))
        except _Unreadable:
            continue
    if len(problems) > before:
        raise _Unreadable
    return tuple(found)


_READ_LIST: Final[Mapping[object, Callable[[Any, object, str, Problems], Any]]] = {
    frozenset: _set,
    tuple: _tuple,
}
