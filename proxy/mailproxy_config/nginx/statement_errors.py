# SPDX-License-Identifier: Apache-2.0
"""Errors about statements of an ``nginx.conf``: duplicate, unknown, or in the wrong context."""

from __future__ import annotations

from collections.abc import Sequence

from mailproxy_config.errors import Problems
from mailproxy_config.hints import advice_for_directive
from mailproxy_config.nginx.syntax import LostDirectives, Statement, swallowed_directives
from mailproxy_config.nginx.values import (
    EVENTS_DIRECTIVES,
    KNOWN_DIRECTIVES,
    OTHER_BLOCKS,
    PROCESS_DIRECTIVES,
    allowed_contexts,
)
from mailproxy_config.schema import closest_match


class StatementErrors:
    """A part of the reader of statements."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._lost = LostDirectives()

    def _duplicate(self, statement: Statement) -> None:
        self._problems.add(statement.location, f'"{statement.name}" directive is duplicate')

    def _not_here(self, statement: Statement) -> None:
        name = statement.name
        reason = f'"{name}" directive is not allowed here: it is allowed {allowed_contexts(name)}'
        self._problems.add(statement.location, reason)

    def _unknown(self, statement: Statement, known: Sequence[str], level: str) -> None:
        name = statement.name
        self._lost.add(level, name, *swallowed_directives(statement))
        if name in KNOWN_DIRECTIVES | PROCESS_DIRECTIVES | EVENTS_DIRECTIVES | OTHER_BLOCKS:
            if statement.block is not None:
                self._lost.add(level)  # a brace may be missing
            self._not_here(statement)
            return
        shown = f'unknown directive "{name[:64]}"'
        advice = advice_for_directive(name)
        meant = "" if advice else closest_match(name, known)
        if meant:
            self._lost.add(level, meant)
        hint = f": {advice}" if advice else f"; did you mean {meant}?" if meant else ""
        self._problems.add(statement.location, shown + hint)
