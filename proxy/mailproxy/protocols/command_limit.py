# SPDX-License-Identifier: Apache-2.0
"""The limit of commands before login (``max_commands``), which freenginx has and nginx has not."""

from __future__ import annotations

from functools import cache
from typing import Any

from mailproxy.enums import CloseReason, LogNote, ProtocolErrorKind
from mailproxy.protocols.frontend import CommandHandling, CommandResult, Frontend, FrontendConfig
from mailproxy.protocols.sansio import ProtocolGenerator, note
from mailproxy.protocols.types import Client, SessionEnd


class _CommandLimit(Frontend[Any]):
    """A frontend that ends the session with the first command above ``max_commands``."""

    __slots__ = ()

    def __init__(self, config: FrontendConfig, client: Client) -> None:
        super().__init__(config, client)
        self.commands_left = self.server.max_commands

    def handle_received(self, _data: bytes) -> None:
        """Leave all commands to ``handle_command``, which counts them."""

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle a command that is within the limit."""
        self.commands_left -= 1
        return super().handle_command(line) if self.commands_left >= 0 else self._too_many(line)  # type: ignore[safe-super]

    def _too_many(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        self.prepare_reply(line)
        yield from note(LogNote("client sent too many commands"))
        yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE)
        return SessionEnd(CloseReason.MAX_COMMANDS)


@cache
def with_command_limit(frontend: type[Frontend[Any]]) -> type[Frontend[Any]]:
    """Return a frontend class with the limit."""
    return type(f"Limited{frontend.__name__}", (_CommandLimit, frontend), {"__slots__": ()})
