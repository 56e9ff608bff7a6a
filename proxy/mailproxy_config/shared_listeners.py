# SPDX-License-Identifier: Apache-2.0
"""Several ``server`` blocks behind one listener: chosen by server name (SNI), or by ALPN protocol.

Two servers may have the same address only if TLS comes first and their names differ.  What
OpenSSL decides before or apart from the choice must be the same in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mailproxy_config.addresses import listen_key
from mailproxy_config.errors import Problems
from mailproxy_config.model import ALPN_CLOSE, ListenConfig, Protocol

SHARED_SETTINGS: Final = (
    "ssl_ecdh_curve",
    "ssl_session_cache",
    "ssl_session_timeout",
    "ssl_session_tickets",
    "ssl_session_ticket_key",
    "ssl_conf_command",
)
"""Directives that apply before a server is chosen, so that all servers behind a listener need the same."""

Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A ``server`` block as far as it matters here.

    Attributes:
        name: Its name in metrics.
        path: Its path in messages.
        protocol: Its protocol; ``None`` if that is an error.
        listen: Its listeners.
        uses_tls: Whether it has an ``ssl`` listener or ``starttls``.
        names: Its names for SNI.
        settings: Its values of ``SHARED_SETTINGS``.
    """

    name: str
    path: str
    protocol: Protocol | None
    listen: tuple[ListenConfig, ...]
    uses_tls: bool
    names: tuple[str, ...]
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Use:
    """One listener of one server."""

    block: Block
    index: int

    @property
    def listen(self) -> ListenConfig:
        return self.block.listen[self.index]

    @property
    def path(self) -> str:
        return f"{self.block.path}.listen[{self.index}]"


def sni_names(server_names: Iterable[str], server_name: str) -> tuple[str, ...]:
    """Names by which a server is chosen: ``server_names``, or ``server_name`` if it has none."""
    names = tuple(server_names)
    return names or ((server_name.lower().removesuffix("."),) if server_name else ())


def key_of(listen: ListenConfig) -> Key:
    """Equal for equal addresses, also if the address is invalid."""
    try:
        return listen_key(listen.address, listen.port)
    except ValueError:
        return listen.address, listen.port


def check_shared_listeners(blocks: Sequence[Block], problems: Problems) -> None:
    """Report listeners of several servers that cannot be served together, and invalid ``alpn_servers``."""
    for uses in _by_address(blocks).values():
        if len(uses) > 1:
            _check_uses(uses, problems)
    by_name = {block.name: block for block in blocks}
    for block in blocks:
        for index, listen in enumerate(block.listen):
            if listen.alpn_servers or listen.alpn_default != ALPN_CLOSE:
                _check_alpn(_Use(block, index), by_name, problems)


def _by_address(blocks: Sequence[Block]) -> dict[Key, list[_Use]]:
    found: dict[Key, list[_Use]] = {}
    for block in blocks:
        for index, listen in enumerate(block.listen):
            found.setdefault(key_of(listen), []).append(_Use(block, index))
    return found


def _check_uses(uses: Sequence[_Use], problems: Problems) -> None:
    """Report what keeps servers from sharing an address; all but the first are reported."""
    first = uses[0]
    seen: dict[str, Block] = dict.fromkeys(first.block.names, first.block)
    for use in uses[1:]:
        reason = _obstacle(first, use, seen)
        if reason is not None:
            listen = use.listen
            shown = f"{listen.address}:{listen.port}" if listen.port else listen.address
            problems.add(use.path, f"duplicate {shown} address and port pair, also in {first.path}{reason}")
        else:
            _check_settings(first.block, use.block, f"{use.path}", problems)
        seen |= dict.fromkeys(use.block.names, use.block)


def _obstacle(first: _Use, use: _Use, seen: Mapping[str, Block]) -> str | None:
    """Why a listener cannot share its address; ``None`` if it can.  Without TLS there is no more to add."""
    if use.block is first.block or not (use.listen.ssl and first.listen.ssl):
        return ""
    if use.listen.alpn_servers or first.listen.alpn_servers:
        return ": a listener with alpnServers belongs to one server"
    if use.block.protocol is not first.block.protocol:
        return ": servers of different protocols cannot share it"
    if replace(use.listen, bind=first.listen.bind) != first.listen:
        return ": the parameters differ"
    return _name_conflict(use.block, seen)


def _name_conflict(block: Block, seen: Mapping[str, Block]) -> str | None:
    """Why a server cannot be chosen by name; ``None`` if it can."""
    if not block.names:
        return ": to choose between them by SNI, set serverNames"
    taken = next((name for name in block.names if name in seen), None)
    return taken and f": both have the name {taken}; to choose between them by SNI, set serverNames"


def _check_settings(first: Block, block: Block, path: str, problems: Problems) -> None:
    for name in SHARED_SETTINGS:
        if block.settings[name] != first.settings[name]:
            reason = f"{name} must be as in {first.path}: it applies before one of them is chosen"
            problems.add(path, reason)


def _check_alpn(use: _Use, by_name: Mapping[str, Block], problems: Problems) -> None:
    listen = use.listen
    if not listen.ssl:
        problems.add(f"{use.path}.alpnServers", "needs ssl: true")
    if not listen.alpn_servers:
        problems.add(f"{use.path}.alpnDefault", "needs alpnServers")
    for path, protocol, name in _alpn_targets(use):
        block = by_name.get(name)
        if block is None:
            problems.add(path, f"there is no server {name!r}")
        elif protocol and block.protocol is not None and block.protocol.value != protocol:
            problems.add(path, f"server {name!r} has the protocol {block.protocol}")
        elif not block.uses_tls:
            problems.add(path, f"server {name!r} has no ssl listener or starttls, and so no TLS")
        elif block is not use.block:
            _check_settings(use.block, block, path, problems)


def _alpn_targets(use: _Use) -> Iterator[tuple[str, str, str]]:
    """Yield path, protocol (empty for any) and name of every server that a listener refers to."""
    for protocol, name in use.listen.alpn_servers:
        yield f"{use.path}.alpnServers.{protocol}", protocol, name
    if use.listen.alpn_default != ALPN_CLOSE:
        yield f"{use.path}.alpnDefault", "", use.listen.alpn_default
