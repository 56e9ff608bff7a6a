# SPDX-License-Identifier: Apache-2.0
"""Shapes: what a field of the manifest may look like, said once.

A shape answers two questions with the same facts: what the Kubernetes API
server shall be told (``schema``), and what is wrong with a value that did not
come through it (``check``).  So the two can never disagree.

A ``Rule`` carries a CEL expression for the API server and the same condition
in Python.  Shapes do not convert anything; see ``values``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final, Protocol

from mailproxy_config.errors import Problems

Schema = dict[str, Any]
LARGEST_INT32: Final = 2**31 - 1
_MOST_UNKNOWN: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One ``x-kubernetes-validations`` entry, and the same in Python.

    ``holds`` is asked about values that have the right shape; it is ``None`` where a
    check with a better path stands elsewhere (``consistency``).
    """

    expression: str
    message: str
    holds: Callable[[Any], bool] | None
    reason: str = "FieldValueInvalid"
    field_path: str = ""

    def schema(self) -> Schema:
        """The entry as the API server takes it; its message names the field."""
        name = self.field_path.lstrip(".")
        message = self.message if name in self.message else f"{name}: {self.message}"
        entry = {"rule": self.expression, "message": message, "reason": self.reason}
        return entry | ({"fieldPath": self.field_path} if self.field_path else {})

    def check(self, value: object, path: str, problems: Problems) -> None:
        """Note the message at the rule's place if the condition does not hold."""
        if self.holds is not None and not self.holds(value):
            problems.add(path + self.field_path, self.message)


class Shape(Protocol):
    """What a value may look like."""

    def schema(self) -> Schema:
        """The structural schema of an API server for this shape, a new mapping each time."""
        ...

    def check(self, value: object, path: str, problems: Problems) -> None:
        """Note everything that is wrong with a value."""
        ...


@dataclass(frozen=True, slots=True)
class Flag:
    """A boolean: nginx's ``on`` and ``off``."""

    default: bool | None = None

    def schema(self) -> Schema:
        """See ``Shape``."""
        return {"type": "boolean"} | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, bool):
            problems.add(path, f"must be true or false, not {kind_of(value)}{_flag_hint(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """A whole number within bounds, both included."""

    minimum: int = 0
    maximum: int = LARGEST_INT32
    default: int | None = None

    def schema(self) -> Schema:
        """See ``Shape``."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        return {"type": "integer", "format": "int32"} | bounds | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if isinstance(value, bool) or not isinstance(value, int):
            problems.add(path, f"must be a whole number, not {kind_of(value)}")
        elif not self.minimum <= value <= self.maximum:
            problems.add(path, f"{_shown(value)} is out of range {self.minimum} to {self.maximum}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text within a length; perhaps one of a few words, perhaps matching an expression.

    ``hint`` says in words what ``pattern`` wants.  A ``secret`` is never quoted in a reason.
    ``spellings`` gives the words for what nginx calls otherwise.
    """

    longest: int
    shortest: int = 0
    words: tuple[str, ...] = ()
    pattern: str = ""
    hint: str = ""
    rules: tuple[Rule, ...] = ()
    default: str | None = None
    secret: bool = False
    spellings: Mapping[str, str] = field(default_factory=dict)

    def schema(self) -> Schema:
        """See ``Shape``."""
        if self.words:
            return {"type": "string", "enum": list(self.words)} | _given(default=self.default)
        bounds = {"maxLength": self.longest} | ({"minLength": self.shortest} if self.shortest else {})
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string"} | bounds | pattern | _rules(self.rules) | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, str):
            problems.add(path, f"must be text, not {kind_of(value)}{self._quote_hint(value)}")
        elif self.words:
            if value not in self.words:
                hint = self._spelling(value.lower()) or _close(value, self.words)
                problems.add(path, f"{_shown(value)} is not one of {', '.join(self.words)}{hint}")
        elif len(value) < self.shortest:
            problems.add(path, "must not be empty")
        elif len(value) > self.longest:
            problems.add(path, f"is longer than {self.longest} characters")
        elif not encodable(value):
            problems.add(path, "is not valid Unicode text")
        elif self.pattern and not matches(self.pattern, value):
            what = "" if self.secret else f"{_shown(value)} is not valid: "
            problems.add(path, f"{what}must be {self.hint or 'text that matches ' + self.pattern}")
        else:
            _check_rules(self.rules, value, path, problems)

    def _quote_hint(self, value: object) -> str:
        """YAML makes booleans of on, off, yes and no; say what to do about it."""
        if not isinstance(value, bool):
            return ""
        if not self.words:
            return "; put it in quotes"
        return f" (one of {', '.join(self.words)}){self._spelling('on' if value else 'off')}"

    def _spelling(self, word: str) -> str:
        return f"; write {self.spellings[word]}" if word in self.spellings else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntOrText:
    """A whole number, or text that a rule or an expression knows: times, sizes, ``auto``, percentages."""

    minimum: int = 0
    maximum: int | None = None
    longest: int = 32
    shortest: int = 0
    pattern: str = ""
    hint: str = ""
    rules: tuple[Rule, ...] = ()
    default: int | str | None = None

    def with_default(self, default: int | str) -> IntOrText:
        """The same shape with a default for the API server to fill in."""
        return replace(self, default=default)

    def schema(self) -> Schema:
        """See ``Shape``."""
        bounds = {"minimum": self.minimum} | _given(maximum=self.maximum) | {"maxLength": self.longest}
        text = {"pattern": self.pattern} if self.pattern else {}
        shortest = {"minLength": self.shortest} if self.shortest else {}
        entry: Schema = {"x-kubernetes-int-or-string": True}
        return entry | bounds | shortest | text | _rules(self.rules) | _given(default=self.default)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            problems.add(path, f"must be a number or text, not {kind_of(value)}")
        elif isinstance(value, int):
            most = LARGEST_INT32 if self.maximum is None else self.maximum
            if not self.minimum <= value <= most:
                problems.add(path, f"{_shown(value)} is out of range {self.minimum} to {most}")
            else:
                _check_rules(self.rules, value, path, problems)
        elif len(value) > self.longest:
            problems.add(path, f"is longer than {self.longest} characters")
        elif self.pattern and not matches(self.pattern, value):
            problems.add(path, f"{_shown(value)} is not valid: must be {self.hint or self.pattern}")
        else:
            _check_rules(self.rules, value, path, problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """A list within a length.  ``keys`` makes it a list-map: no two items may agree in them."""

    items: Shape
    most: int
    fewest: int = 0
    keys: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def schema(self) -> Schema:
        """See ``Shape``."""
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}
        fewest = {"minItems": self.fewest} if self.fewest else {}
        entry: Schema = {"type": "array", "maxItems": self.most, **fewest}
        entry |= kind if self.keys else {"x-kubernetes-list-type": "atomic"}
        return entry | {"items": self.items.schema()} | _rules(self.rules)

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            hint = "" if value is None else "; put it into [ ]"
            problems.add(path, f"must be a list, not {kind_of(value)}{hint}")
            return
        if not self.fewest <= len(value) <= self.most:
            problems.add(path, f"has {len(value)} items, which is out of range {self.fewest} to {self.most}")
        before = len(problems)
        for index, item in enumerate(value[: self.most]):
            self.items.check(item, f"{path}[{index}]", problems)
        if len(problems) == before:
            self._check_keys(value, path, problems)
            _check_rules(self.rules, value, path, problems)

    def _check_keys(self, value: Sequence[Any], path: str, problems: Problems) -> None:
        """Note items whose keys another item has already."""
        seen: dict[tuple[object, ...], int] = {}
        for index, item in enumerate(value if self.keys else ()):
            key = tuple(item.get(name) for name in self.keys)
            first = seen.setdefault(key, index)
            if first != index:
                problems.add(
                    f"{path}[{index}].{self.keys[0]}", f"{_shown(key[0])} is also the one of {path}[{first}]"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An object with known fields; anything else in it is an error.

    ``advice`` says what to do about an unknown field, or nothing; ``example`` is what
    to write where something else than an object stands.
    """

    fields: Mapping[str, Shape]
    required: Collection[str] = ()
    rules: tuple[Rule, ...] = ()
    default: Mapping[str, object] | None = None
    advice: Callable[[str], str] | None = None
    example: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def schema(self) -> Schema:
        """See ``Shape``; fields that have a description carry it."""
        properties = {name: self._described(name, shape) for name, shape in self.fields.items()}
        entry: Schema = {"type": "object", "properties": properties}
        entry |= {"required": list(self.required)} if self.required else {}
        return entry | _rules(self.rules) | ({} if self.default is None else {"default": dict(self.default)})

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, Mapping):
            hint = f"; write {self.example}" if self.example else ""
            problems.add(path, f"must be an object with fields, not {kind_of(value)}{hint}")
            return
        before = len(problems)
        for name, inner in value.items():
            shape = self.fields.get(name)
            if shape is None:
                problems.add(dotted(path, name), f"unknown field{self._hint(name)}")
            else:
                shape.check(inner, dotted(path, name), problems)
        for name in self.missing(value):
            problems.add(dotted(path, name), "is required")
        if len(problems) == before:
            _check_rules(self.rules, value, path, problems)

    def missing(self, value: Mapping[str, Any]) -> list[str]:
        """Required fields that an object lacks, but for those that an unknown field was meant to be."""
        lacking = [name for name in self.required if name not in value]
        meant = self.meant(value) if lacking else {}
        return [name for name in lacking if name not in meant.values()]

    def meant(self, value: Mapping[str, Any]) -> dict[str, str]:
        """The known fields that the unknown ones of an object were probably meant to be."""
        unknown = [name for name in value if name not in self.fields][:_MOST_UNKNOWN]
        found = {name: closest(str(name), self.fields) for name in unknown}
        return {name: field for name, field in found.items() if field}

    def _hint(self, name: object) -> str:
        advice = self.advice(str(name)) if self.advice is not None else ""
        return f": {advice}" if advice else _close(name, self.fields)

    def _described(self, name: str, shape: Shape) -> Schema:
        """One property's schema, its description in front."""
        description = self.descriptions.get(name)
        return ({"description": description} if description else {}) | shape.schema()


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """An object whose fields all have one shape: labels, annotations, quantities."""

    values: Shape
    most: int = 64

    def schema(self) -> Schema:
        """See ``Shape``."""
        return {"type": "object", "maxProperties": self.most, "additionalProperties": self.values.schema()}

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, Mapping):
            problems.add(path, f"must be an object with fields, not {kind_of(value)}")
            return
        if len(value) > self.most:
            problems.add(path, f"has {len(value)} fields, which is more than {self.most}")
        for name, inner in list(value.items())[: self.most]:
            self.values.check(inner, f"{path}[{_shown(name)}]", problems)


@dataclass(frozen=True, slots=True)
class Anything:
    """An object that is handed to Kubernetes as it is."""

    def schema(self) -> Schema:
        """See ``Shape``."""
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

    def check(self, value: object, path: str, problems: Problems) -> None:
        """See ``Shape``."""
        if not isinstance(value, Mapping):
            problems.add(path, f"must be an object with fields, not {kind_of(value)}")


def dotted(path: str, name: object) -> str:
    """The path of a field: ``spec`` and ``mail`` make ``spec.mail``."""
    shown = str(name)[:64]
    return f"{path}.{shown}" if path else shown


def kind_of(value: object) -> str:
    """What a value is, in the words of a manifest's writer."""
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
    """Whether an expression is found in a text, with RE2's meaning of ``$`` (the very end)."""
    compiled = re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern, re.ASCII)
    return compiled.search(text) is not None


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can smuggle in halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flag_hint(value: object) -> str:
    """What to write for a word of nginx that stands in quotes."""
    meant = {"on": "true", "yes": "true", "true": "true", "off": "false", "no": "false", "false": "false"}
    word = value.lower() if isinstance(value, str) else ""
    return f"; write {meant[word]}, without quotes" if word in meant else ""


def _check_rules(rules: tuple[Rule, ...], value: object, path: str, problems: Problems) -> None:
    for rule in rules:
        rule.check(value, path, problems)


def _rules(rules: tuple[Rule, ...]) -> Schema:
    return {"x-kubernetes-validations": [rule.schema() for rule in rules]} if rules else {}


def _given(**entries: object) -> Schema:
    return {name: value for name, value in entries.items() if value is not None}


def _shown(value: object) -> str:
    """A value in a message: short, printable, on one line."""
    text = repr(value) if isinstance(value, str) else str(value)[:41]
    return text if len(text) <= 66 else text[:64] + "..."


def _close(word: object, known: Collection[str]) -> str:
    """``; did you mean ...?`` where something known looks much alike."""
    found = closest(str(word), known)
    return f"; did you mean {found}?" if found else ""


def closest(word: str, known: Collection[str]) -> str:
    """What a typing error may have made a word of; empty where nothing known looks much alike.

    A timeout is never taken for another one, which would limit something else.
    """
    lowered = {name.lower(): name for name in known}
    found = get_close_matches(word[:64].lower(), list(lowered), n=1, cutoff=0.75)
    if not found or ("timeout" in found[0] and _parts(lowered[found[0]]) != _parts(word)):
        return ""
    return lowered[found[0]]


def _parts(name: str) -> int:
    """How many words a name in lowerCamelCase or with underscores is made of."""
    return sum(letter.isupper() or letter == "_" for letter in name)
