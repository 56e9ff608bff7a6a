# SPDX-License-Identifier: Apache-2.0
"""Schemas of the fields of a manifest.

A schema has two uses: ``openapi`` is the schema for the Kubernetes API server, ``check``
validates a value that did not come from the API server.  A ``Rule`` has a CEL expression
for the API server and the same condition in Python.  Values are converted in ``value_types``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final, Protocol

from mailproxy_config.errors import Problems

OpenApiSchema = dict[str, Any]
MAX_INT32: Final = 2**31 - 1
_MAX_UNKNOWN: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of ``x-kubernetes-validations``, and the same condition in Python.

    ``predicate`` is called with values that match the schema.  It is ``None`` if ``cross_checks``
    has the same condition with a more exact path.
    """

    expression: str
    message: str
    predicate: Callable[[Any], bool] | None
    reason: str = "FieldValueInvalid"
    field_path: str = ""

    def openapi(self) -> OpenApiSchema:
        """The entry for the API server; its message contains the name of the field."""
        name = self.field_path.lstrip(".")
        message = self.message if name in self.message else f"{name}: {self.message}"
        entry = {"rule": self.expression, "message": message, "reason": self.reason}
        return entry | ({"fieldPath": self.field_path} if self.field_path else {})

    def check(self, value: object, path: str, problems: Problems) -> None:
        """Add the message at the path of the rule if the condition is false."""
        if self.predicate is not None and not self.predicate(value):
            problems.add(path + self.field_path, self.message)


class Schema(Protocol):
    """The schema of a value."""

    def openapi(self) -> OpenApiSchema:
        """The structural schema for an API server; a new mapping for each call."""
        ...

    def check(self, value: object, path: str, problems: Problems) -> None:
        """Add all errors of a value."""
        ...


@dataclass(frozen=True, slots=True)
class Boolean:
    """A boolean: nginx's ``on`` and ``off``."""

    default: bool | None = None

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        return {"type": "boolean"} | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, bool):
            problems.add(path, f"must be true or false, not {type_of(value)}{_flag_hint(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """An integer within limits, both included."""

    minimum: int = 0
    maximum: int = MAX_INT32
    default: int | None = None

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        return {"type": "integer", "format": "int32"} | bounds | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if isinstance(value, bool) or not isinstance(value, int):
            problems.add(path, f"must be a whole number, not {type_of(value)}")
        elif not self.minimum <= value <= self.maximum:
            problems.add(path, f"{_quote(value)} is out of range {self.minimum} to {self.maximum}")


@dataclass(frozen=True, slots=True, kw_only=True)
class String:
    """Text with a maximum length, and optionally an enumeration or a pattern.

    ``hint`` describes ``pattern``.  The value of a ``secret`` is never part of a message.
    ``spellings`` maps nginx's words to those of ``enum``.
    """

    max_length: int
    min_length: int = 0
    enum: tuple[str, ...] = ()
    pattern: str = ""
    hint: str = ""
    rules: tuple[Rule, ...] = ()
    default: str | None = None
    secret: bool = False
    spellings: Mapping[str, str] = field(default_factory=dict)

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        if self.enum:
            return {"type": "string", "enum": list(self.enum)} | _given(default=self.default)
        bounds = {"maxLength": self.max_length} | ({"minLength": self.min_length} if self.min_length else {})
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string"} | bounds | pattern | _rules(self.rules) | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, str):
            problems.add(path, f"must be text, not {type_of(value)}{self._quote_hint(value)}")
        elif self.enum:
            if value not in self.enum:
                hint = self._spelling(value.lower()) or _did_you_mean(value, self.enum)
                problems.add(path, f"{_quote(value)} is not one of {', '.join(self.enum)}{hint}")
        elif len(value) < self.min_length:
            problems.add(path, "must not be empty")
        elif len(value) > self.max_length:
            problems.add(path, f"is longer than {self.max_length} characters")
        elif not is_encodable(value):
            problems.add(path, "is not valid Unicode text")
        elif self.pattern and not matches(self.pattern, value):
            what = "" if self.secret else f"{_quote(value)} is not valid: "
            problems.add(path, f"{what}must be {self.hint or 'text that matches ' + self.pattern}")
        else:
            _check_rules(self.rules, value, path, problems)

    def _quote_hint(self, value: object) -> str:
        """How to fix a boolean that YAML made of on, off, yes or no."""
        if not isinstance(value, bool):
            return ""
        if not self.enum:
            return "; put it in quotes"
        return f" (one of {', '.join(self.enum)}){self._spelling('on' if value else 'off')}"

    def _spelling(self, word: str) -> str:
        return f"; write {self.spellings[word]}" if word in self.spellings else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntOrString:
    """An integer, or text that matches a rule or pattern: times, sizes, ``auto``, percentages."""

    minimum: int = 0
    maximum: int | None = None
    max_length: int = 32
    min_length: int = 0
    pattern: str = ""
    hint: str = ""
    rules: tuple[Rule, ...] = ()
    default: int | str | None = None

    def with_default(self, default: int | str) -> IntOrString:
        """The same schema with a default for the API server."""
        return replace(self, default=default)

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        bounds = {"minimum": self.minimum} | _given(maximum=self.maximum) | {"maxLength": self.max_length}
        text = {"pattern": self.pattern} if self.pattern else {}
        min_length = {"minLength": self.min_length} if self.min_length else {}
        entry: OpenApiSchema = {"x-kubernetes-int-or-string": True}
        return entry | bounds | min_length | text | _rules(self.rules) | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            problems.add(path, f"must be a number or text, not {type_of(value)}")
        elif isinstance(value, int):
            maximum = MAX_INT32 if self.maximum is None else self.maximum
            if not self.minimum <= value <= maximum:
                problems.add(path, f"{_quote(value)} is out of range {self.minimum} to {maximum}")
            else:
                _check_rules(self.rules, value, path, problems)
        elif len(value) > self.max_length:
            problems.add(path, f"is longer than {self.max_length} characters")
        elif self.pattern and not matches(self.pattern, value):
            problems.add(path, f"{_quote(value)} is not valid: must be {self.hint or self.pattern}")
        else:
            _check_rules(self.rules, value, path, problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """A list.  With ``keys`` it is a list-map: the keys of its items are unique."""

    items: Schema
    max_items: int
    min_items: int = 0
    keys: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}
        min_items = {"minItems": self.min_items} if self.min_items else {}
        entry: OpenApiSchema = {"type": "array", "maxItems": self.max_items, **min_items}
        entry |= kind if self.keys else {"x-kubernetes-list-type": "atomic"}
        return entry | {"items": self.items.openapi()} | _rules(self.rules)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            hint = "" if value is None else "; put it into [ ]"
            problems.add(path, f"must be a list, not {type_of(value)}{hint}")
            return
        if not self.min_items <= len(value) <= self.max_items:
            problems.add(
                path, f"has {len(value)} items, which is out of range {self.min_items} to {self.max_items}"
            )
        before = len(problems)
        for index, item in enumerate(value[: self.max_items]):
            self.items.check(item, f"{path}[{index}]", problems)
        if len(problems) == before:
            self._check_keys(value, path, problems)
            _check_rules(self.rules, value, path, problems)

    def _check_keys(self, value: Sequence[Any], path: str, problems: Problems) -> None:
        """Report items with the keys of an earlier item."""
        seen: dict[tuple[object, ...], int] = {}
        for index, item in enumerate(value if self.keys else ()):
            key = tuple(item.get(name) for name in self.keys)
            first = seen.setdefault(key, index)
            if first != index:
                problems.add(
                    f"{path}[{index}].{self.keys[0]}", f"{_quote(key[0])} is also in {path}[{first}]"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """An object with known fields; unknown fields are errors.

    ``advice`` returns how to replace an unknown field, or nothing.  ``example`` is shown if the
    value is not an object.
    """

    fields: Mapping[str, Schema]
    required: Collection[str] = ()
    rules: tuple[Rule, ...] = ()
    default: Mapping[str, object] | None = None
    advice: Callable[[str], str] | None = None
    example: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``; fields that have a description carry it."""
        properties: OpenApiSchema = {}
        for name, schema in self.fields.items():
            description = self.descriptions.get(name)
            properties[name] = ({"description": description} if description else {}) | schema.openapi()
        entry: OpenApiSchema = {"type": "object", "properties": properties}
        entry |= {"required": list(self.required)} if self.required else {}
        return entry | _rules(self.rules) | ({} if self.default is None else {"default": dict(self.default)})

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, Mapping):
            hint = f"; write {self.example}" if self.example else ""
            problems.add(path, f"must be an object with fields, not {type_of(value)}{hint}")
            return
        before = len(problems)
        for name, inner in value.items():
            schema = self.fields.get(name)
            if schema is None:
                problems.add(join_path(path, name), f"unknown field{self._hint(name)}")
            else:
                schema.check(inner, join_path(path, name), problems)
        for name in self.missing(value):
            problems.add(join_path(path, name), "is required")
        if len(problems) == before:
            _check_rules(self.rules, value, path, problems)

    def missing(self, value: Mapping[str, Any]) -> list[str]:
        """Required fields that are missing and are not the intended name of an unknown field."""
        lacking = [name for name in self.required if name not in value]
        meant = self.meant(value) if lacking else {}
        return [name for name in lacking if name not in meant.values()]

    def meant(self, value: Mapping[str, Any]) -> dict[str, str]:
        """Unknown fields that look like typing errors, with the fields that were probably intended."""
        unknown = [name for name in value if name not in self.fields][:_MAX_UNKNOWN]
        found = {name: closest_match(str(name), self.fields) for name in unknown}
        return {name: field for name, field in found.items() if field}

    def _hint(self, name: object) -> str:
        advice = self.advice(str(name)) if self.advice is not None else ""
        return f": {advice}" if advice else _did_you_mean(name, self.fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOf:
    """An object whose fields all have the same schema: labels, annotations, quantities."""

    values: Schema
    max_fields: int = 64

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        return {
            "type": "object",
            "maxProperties": self.max_fields,
            "additionalProperties": self.values.openapi(),
        }

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, Mapping):
            problems.add(path, f"must be an object with fields, not {type_of(value)}")
            return
        if len(value) > self.max_fields:
            problems.add(path, f"has {len(value)} fields, which is more than {self.max_fields}")
        for name, inner in list(value.items())[: self.max_fields]:
            self.values.check(inner, f"{path}[{_quote(name)}]", problems)


@dataclass(frozen=True, slots=True)
class AnyObject:
    """An object that is passed to Kubernetes unchanged."""

    def openapi(self) -> OpenApiSchema:
        """See ``Schema``."""
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Schema``."""
        if not isinstance(value, Mapping):
            problems.add(path, f"must be an object with fields, not {type_of(value)}")


def join_path(path: str, name: object) -> str:
    """The path of a field: ``spec`` and ``mail`` make ``spec.mail``."""
    shown = str(name)[:64]
    return f"{path}.{shown}" if path else shown


def type_of(value: object) -> str:
    """The type of a value, for a message."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (type(None), "nothing"),
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "text"),
        (Mapping, "an object"),
        (Sequence, "a list"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), type(value).__name__)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text; ``$`` is the very end, as in RE2."""
    compiled = re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern, re.ASCII)
    return compiled.search(text) is not None


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: JSON can contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flag_hint(value: object) -> str:
    """What to write instead of nginx's on or off in quotes."""
    meant = {"on": "true", "yes": "true", "true": "true", "off": "false", "no": "false", "false": "false"}
    word = value.lower() if isinstance(value, str) else ""
    return f"; write {meant[word]}, without quotes" if word in meant else ""


def _check_rules(rules: tuple[Rule, ...], value: object, path: str, problems: Problems) -> None:
    for rule in rules:
        rule.check(value, path, problems)


def _rules(rules: tuple[Rule, ...]) -> OpenApiSchema:
    return {"x-kubernetes-validations": [rule.openapi() for rule in rules]} if rules else {}


def _given(**entries: object) -> OpenApiSchema:
    return {name: value for name, value in entries.items() if value is not None}


def _quote(value: object) -> str:
    """A value in a message: short, printable, on one line."""
    text = repr(value) if isinstance(value, str) else str(value)[:41]
    return text if len(text) <= 66 else text[:64] + "..."


def _did_you_mean(word: object, known: Collection[str]) -> str:
    """``; did you mean ...?`` if a known name is similar."""
    found = closest_match(str(word), known)
    return f"; did you mean {found}?" if found else ""


def closest_match(word: str, known: Collection[str]) -> str:
    """The known name that is most similar to a misspelled one, or an empty text.

    A timeout matches only a timeout with the same number of words, because a similar name may
    be a different limit.
    """
    lowered = {name.lower(): name for name in known}
    found = get_close_matches(word[:64].lower(), list(lowered), n=1, cutoff=0.75)
    if not found or ("timeout" in found[0] and _parts(lowered[found[0]]) != _parts(word)):
        return ""
    return lowered[found[0]]


def _parts(name: str) -> int:
    """How many words a name in lowerCamelCase or with underscores is made of."""
    return sum(letter.isupper() or letter == "_" for letter in name)
