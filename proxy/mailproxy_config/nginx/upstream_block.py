# SPDX-License-Identifier: Apache-2.0
"""``upstream NAME {}`` in ``mail {}``: a group of upstreams, with the grammar of nginx's http upstreams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mailproxy_config.errors import Problems
from mailproxy_config.nginx.syntax import Statement
from mailproxy_config.nginx.values import UPSTREAM_KEY, Block
from mailproxy_config.upstream_groups import GroupHash
from mailproxy_config.value_types import Raw, parse_nginx_number

UPSTREAM_DIRECTIVES: Final = frozenset({"server", "hash"})
"""Directives that only ``upstream {}`` has; the others are those of ``mail {}``."""

_HASH: Final = ("$remote_user", "consistent")


def begin_upstream(statement: Statement, block: Block, problems: Problems) -> tuple[Statement, ...]:
    """Read the name of a group, and return the statements of its block."""
    if statement.block is None:
        problems.add(statement.location, 'directive "upstream" has no opening "{"')
    if len(statement.arguments) != 1:
        problems.add(statement.location, 'invalid number of arguments in "upstream" directive')
    block.fields["name"] = statement.arguments[0] if statement.arguments else "upstream"
    return statement.block or ()


def read_upstream_directive(
    statement: Statement, block: Block, origins: dict[str, tuple[str, str]], problems: Problems
) -> None:
    """Read ``server`` or ``hash``.

    Args:
        statement: The statement.
        block: The block; gets the value.
        origins: Gets file and line of the value, by its path.
        problems: Collects the errors.
    """
    origin = statement.location, statement.name
    if statement.block is not None:
        problems.add(statement.location, f'directive "{statement.name}" is not terminated by ";"')
        return
    try:
        if statement.name == "server":
            servers = block.fields.setdefault("servers", [])
            servers.append(_parse_server(statement.arguments))
            origins.setdefault(f"{block.path}.servers", origin)
            origins[f"{block.path}.servers[{len(servers) - 1}]"] = origin
        elif "hash" in block.fields:
            problems.add(statement.location, '"hash" directive is duplicate')
        else:
            block.fields["hash"] = _parse_hash(statement.arguments)
            origins[f"{block.path}.hash"] = origin
    except ValueError as error:
        problems.add(statement.location, f'"{statement.name}" directive: {error}')


def complete_upstream(block: Block, problems: Problems) -> dict[str, Raw]:
    """Return the manifest value of a group; its certificate is paired with its key."""
    pair, key = block.fields.get("proxySslCertificate"), block.upstream_key
    if pair is not None and key:
        block.fields["proxySslCertificate"] = pair | {"keyFile": key}
    elif pair is not None or key:
        missing = "proxy_ssl_certificate" if pair is None else UPSTREAM_KEY
        problems.add(block.location, f'"upstream": no "{missing}" is defined')
        block.fields.pop("proxySslCertificate", None)
    if "servers" not in block.fields:
        problems.add(block.location, '"upstream": there is no "server"')
        block.fields["servers"] = [{"address": "localhost"}]
    return block.fields


def _parse_server(arguments: Sequence[str]) -> Raw:
    """``server ADDRESS [weight=NUMBER] [backup]``."""
    if not arguments:
        raise ValueError("invalid number of arguments")
    found: dict[str, Any] = {"address": arguments[0]}
    for word in arguments[1:]:
        name, equals, value = word.partition("=")
        if name in found:
            raise ValueError(f"duplicate parameter: {name}")
        if name == "weight" and equals:
            found["weight"] = parse_nginx_number([value])
        elif word == "backup":
            found["backup"] = True
        else:
            raise ValueError(f"invalid parameter: {word[:64]} (there are weight=NUMBER and backup)")
    return found


def _parse_hash(arguments: Sequence[str]) -> str:
    """``hash $remote_user consistent``."""
    if tuple(arguments) != _HASH:
        raise ValueError(f'the only key is the login name: write "hash {" ".join(_HASH)}"')
    return str(GroupHash.USER)
