# SPDX-License-Identifier: Apache-2.0
"""What a row of the table of directives says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mailproxy_config.value_types import ErrorPath, Raw, ValueType

from .errors import Problems


class Context(StrEnum):
    """Where nginx allows a directive."""

    MAIN = "main"
    EVENTS = "events"
    MAIL = "mail"
    SERVER = "server"


class Inheritance(StrEnum):
    """What a server does with the value of the mail level."""

    VALUE = "value"
    """The server's, else the mail level's, else the built-in default."""
    LIST = "list"
    """The same, for lists: a server's list replaces the mail level's as a whole."""
    NONE = "none"
    """There is nothing to inherit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One directive.

    Attributes:
        name: nginx's name, and the attribute of ``ServerConfig``.
        module: The nginx module it belongs to, without ``ngx_`` and ``_module``.
        type: What its values look like.
        meaning: One sentence, for ``kubectl explain`` and the reference page.
        default: The built-in default as the manifest would write it; ``None`` where there is none.
        contexts: Where it may stand.
        inheritance: What a server does with the mail level's value.
        part_of: The directive whose field carries this one's value, where it has none of its own.
        field: The manifest's name for it.
        is_ours: Whether nginx does not have it; it may stand in an ``nginx.conf`` all the same.
    """

    name: str
    module: str
    type: ValueType
    meaning: str
    default: Raw = None
    contexts: tuple[Context, ...] = (Context.MAIL, Context.SERVER)
    inheritance: Inheritance = Inheritance.VALUE
    part_of: str = ""
    field: str = ""
    is_ours: bool = False

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", lower_camel_case(self.name))

    def builtin(self) -> object:
        """The built-in default as a model value; ``None`` where there is none.

        Raises:
            AssertionError: The table is wrong.
        """
        if self.default is None:
            return None
        problems = Problems()
        value = self.type.read(self.default, ErrorPath(self.field, problems))
        assert not problems, self.name  # noqa: S101 -- a mistake in the table, not in a configuration
        return value


def lower_camel_case(name: str) -> str:
    """``auth_http_timeout`` is ``authHttpTimeout``."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
