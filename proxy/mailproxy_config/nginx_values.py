"""Statements of an ``nginx.conf`` as values of a manifest, and what nginx inherits in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .directives import Directive
from .errors import Problems
from .files import CERTIFICATES, FILE, FILES
from .nginx_syntax import Files, Statement
from .values import Raw

_NOT_FILES: Final = ("data:", "engine:", "store:")


@dataclass(slots=True)
class Block:
    """One level while it is read: its fields, and the keys that stand apart from their certificates."""

    path: str
    where: str
    fields: dict[str, Raw] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def starttls(self) -> str | None:
        """What it says about ``starttls`` itself."""
        return self.fields.get("starttls")


def manifest_value(row: Directive, statement: Statement, files: Files) -> Raw:
    """The manifest's value of a statement; ``None`` if there is none, which is noted."""
    least, most = row.type.arity
    count = len(statement.arguments)
    if statement.block is not None:
        files.problems.add(statement.where, f'directive "{row.name}" is not terminated by ";"')
        return None
    if count < least or (most is not None and count > most):
        files.problems.add(statement.where, f'invalid number of arguments in "{row.name}" directive')
        return None
    try:
        return _with_paths(row, row.type.nginx(statement.arguments), files)
    except ValueError as error:
        files.problems.add(statement.where, f'"{row.name}" directive: {error}')
        return None


def _with_paths(row: Directive, value: Raw, files: Files) -> Raw:
    """The value, its paths made absolute."""
    if row.type is FILE:
        return {"file": _path(value["file"], files)}
    if row.type is FILES:
        return [{"file": _path(item["file"], files)} for item in value]
    if row.type is CERTIFICATES:
        name = "keyFile" if row.part_of else "certificateFile"
        return [{name: _path(item["certificateFile"], files)} for item in value]
    return value


def _path(written: str, files: Files) -> str:
    if written.startswith(_NOT_FILES):
        raise ValueError(f"{written.partition(':')[0]}: cannot be carried over; put it into a file")
    return files.path(written)


def pair_certificates(mail: Block, servers: Sequence[Block], problems: Problems) -> None:
    """Make pairs of certificates and keys, which nginx inherits apart and pairs by position."""
    chains = list(mail.fields.pop("sslCertificate", ()))
    for server in servers:
        own = server.fields.pop("sslCertificate", None)
        wanted, keys = own or chains, server.keys or mail.keys
        pairs = _pairs(wanted, keys)
        if len(pairs) < len(wanted) and _uses_tls(server, mail):
            missing = wanted[len(pairs)]["certificateFile"]
            reason = f'no "ssl_certificate_key" is defined for certificate "{missing}"'
            problems.add(server.where, reason)
        if pairs and (own or server.keys):
            server.fields["sslCertificate"] = pairs
    if _pairs(chains, mail.keys):
        mail.fields["sslCertificate"] = _pairs(chains, mail.keys)


def _pairs(chains: Sequence[dict[str, Raw]], keys: Sequence[str]) -> list[Raw]:
    """By position; surplus ones on either side are left out."""
    return [chain | {"keyFile": key} for chain, key in zip(chains, keys, strict=False)]


def _uses_tls(server: Block, mail: Block) -> bool:
    listens = any(listener.get("ssl") for listener in server.fields.get("listen", ()))
    return listens or (server.starttls or mail.starttls or "Disabled") != "Disabled"


def session_caches(mail: Block, servers: Sequence[Block]) -> None:
    """Give servers with a cache of their own in the process the shared one of the mail level as well.

    ``ssl_session_cache builtin`` in a server leaves an inherited ``shared`` cache in use.
    """
    inherited = mail.fields.get("sslSessionCache", ())
    shared = [part for part in inherited if part.startswith("shared:")]
    for server in servers:
        own = server.fields.get("sslSessionCache", [])
        if shared and own and all(part.startswith("builtin") for part in own):
            server.fields["sslSessionCache"] = own + shared
