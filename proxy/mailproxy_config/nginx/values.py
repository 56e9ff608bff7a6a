# SPDX-License-Identifier: Apache-2.0
"""Contexts of nginx's directives, and their values as values of a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mailproxy_config.directives import (
    DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
    by_field,
    by_name,
)
from mailproxy_config.errors import Problems
from mailproxy_config.nginx.syntax import ConfigFiles, Statement
from mailproxy_config.policy_directives import POLICY_SERVER
from mailproxy_config.route_directives import ROUTES
from mailproxy_config.secret_refs import FILE, FILES, SELECTOR
from mailproxy_config.tls_directives import CERTIFICATE, CERTIFICATES, CONF_COMMANDS
from mailproxy_config.upstream_login_directives import AUTH_TOKEN, MASTER_USER, map_files
from mailproxy_config.value_types import Raw

MAIN: Final = by_name(MAIN_DIRECTIVES)
"""Directives allowed outside of ``mail {}``."""

LEVEL: Final = by_name(LEVEL_DIRECTIVES)
"""Directives allowed in ``mail {}`` and its servers."""

SERVER: Final = by_name(SERVER_DIRECTIVES)
"""Directives allowed in servers only."""

FIELDS: Final = by_field(DIRECTIVES)
"""Directives by their fields in a manifest."""

KEY: Final = "ssl_certificate_key"
UPSTREAM_KEY: Final = "proxy_ssl_certificate_key"
KEYS: Final = frozenset({KEY, UPSTREAM_KEY})
"""The directives without a field of their own."""

KNOWN_DIRECTIVES: Final = frozenset(
    {"mail", "server", "upstream", "events", "include", *MAIN, *LEVEL, *SERVER, *KEYS}
)
"""All directives that are known in some context."""


OTHER_BLOCKS: Final = frozenset({"http", "stream", "google_perftools_profiles", "rtmp", "mgmt"})
PROCESS_DIRECTIVES: Final = frozenset(
    {
        *("daemon", "master_process", "pid", "user", "env", "load_module", "lock_file", "working_directory"),
        *("worker_rlimit_nofile", "worker_rlimit_core", "worker_priority", "worker_cpu_affinity"),
        *("worker_aio_requests", "timer_resolution", "debug_points", "pcre_jit", "ssl_engine"),
        *("thread_pool", "ssl_object_cache_inheritable"),
    }
)
"""Directives about processes; accepted and ignored."""

EVENTS_DIRECTIVES: Final = frozenset(
    {"multi_accept", "accept_mutex", "accept_mutex_delay", "use", "debug_connection", "worker_aio_requests"}
)
"""The same in ``events {}``."""

IGNORED_BECAUSE: Final = {
    "user": "the proxy runs as the user that starts it, and does not change users",
    "pid": "no file with the number of the process is written",
    "worker_rlimit_nofile": "the proxy raises its limit of open files up to the hard limit (ulimit -Hn)",
    "daemon": "the proxy stays in the foreground",
    "ssl_engine": "engines of OpenSSL are not used",
}
"""Notices about ignored directives."""


_QUOTED_FIELD: Final = re.compile(r'"([a-z][a-z0-9]*[A-Z][A-Za-z0-9]*)"')
_OUTSIDE: Final = "outside of every block"


def allowed_contexts(name: str) -> str:
    """The contexts in which a known directive is allowed, such as ``in server {}``."""
    if name in SERVER:
        return "in server {}"
    if name in LEVEL or name in KEYS:
        return f"{_OUTSIDE}, in mail {{}} or in server {{}}" if name in MAIN else "in mail {} or server {}"
    if name in {"server", "upstream"}:
        return "in mail {}"
    return "in events {}" if name == "worker_connections" or name in EVENTS_DIRECTIVES else _OUTSIDE


def use_nginx_names(reason: str) -> str:
    """Replace quoted field names in a message by nginx's names."""

    def name(field: re.Match[str]) -> str:
        row = FIELDS.get(field[1])
        return f'"{row.name}"' if row is not None else field[0]

    return _QUOTED_FIELD.sub(name, reason)


def order_server_fields(fields: dict[str, Raw]) -> dict[str, Raw]:
    """The same fields, with protocol and listen first."""
    return {name: fields[name] for name in ("protocol", "listen") if name in fields} | fields


def generate_server_names(servers: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each server: its protocol, and its first port if that is not unique."""
    protocols = [str(server.get("protocol", "server")) for server in servers]
    counts = Counter(protocols)
    names: dict[str, None] = {}
    for index, (server, protocol) in enumerate(zip(servers, protocols, strict=True)):
        port = next((listener["port"] for listener in server.get("listen", ()) if "port" in listener), "unix")
        name = protocol if counts[protocol] == 1 else f"{protocol}-{port}"
        names[name if name not in names else f"{name}-{index}"] = None
    return list(names)


_NOT_FILES: Final = frozenset({"data:", "engine:", "store:"})
_TAKES_PATHS: Final = frozenset(
    {
        *("certificate", "privatekey", "serverinfofile", "dhparameters"),
        *("chaincafile", "verifycafile", "requestcafile", "clientcafile"),
        *("chaincapath", "verifycapath", "requestcapath", "clientcapath"),
    }
)
"""OpenSSL's commands (``SSL_CONF_cmd``) whose value is a path."""


@dataclass(slots=True)
class Block:
    """One level while it is read: its fields, and its keys until they are paired with certificates.

    ``secret`` is the name of a Secret for certificates that are not in files.  ``locations`` has
    file and line of each certificate and key.  ``upstream_key`` is the value of
    ``proxy_ssl_certificate_key``.
    """

    path: str
    location: str
    secret: str = ""
    fields: dict[str, Raw] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    upstream_key: str = ""
    seen: set[str] = field(default_factory=set)
    locations: dict[str, str] = field(default_factory=dict)

    def add_key(self, statement: Statement, value: Raw) -> bool:
        """Record the value of a directive in ``KEYS``; return whether it may stand here.

        ``ssl_certificate_key`` may be repeated, one for each certificate.
        """
        if statement.name == KEY:
            for pair in value:
                self.keys.append(pair["keyFile"])
                self.locations[pair["keyFile"]] = statement.location
            return True
        is_first = not self.upstream_key
        self.upstream_key = value["keyFile"]
        return is_first

    @property
    def starttls(self) -> str | None:
        """Its own value of ``starttls``."""
        return self.fields.get("starttls")


def convert_value(row: Directive, statement: Statement, files: ConfigFiles, secret: str = "") -> Raw:
    """Convert a statement to a manifest value; report errors and return ``None``.

    Args:
        row: The directive.
        statement: The statement.
        files: The file, and its errors.
        secret: The name of the Secret that replaces certificates and keys that are not in
            files, with a notice.  Empty: they are errors.
    """
    least, most = row.type.arity
    count = len(statement.arguments)
    if statement.block is not None:
        files.problems.add(statement.location, f'directive "{row.name}" is not terminated by ";"')
        return None
    if count < least or (most is not None and count > most):
        files.problems.add(statement.location, f'invalid number of arguments in "{row.name}" directive')
        return None
    scheme = _scheme(row, statement.arguments)
    if scheme:
        return _without_file(row, statement, files, secret, scheme)
    try:
        return _with_paths(row, row.type.nginx(statement.arguments), files)
    except ValueError as error:
        files.problems.add(statement.location, f'"{row.name}" directive: {error}')
        return None


def _with_paths(row: Directive, value: Raw, files: ConfigFiles) -> Raw:  # noqa: PLR0911 -- one for each type
    """The value with absolute paths."""
    if any(row.type is each for each in (FILE, MASTER_USER, AUTH_TOKEN, POLICY_SERVER, SELECTOR)):
        return map_files(value, files.path)
    if row.type is ROUTES:
        return [map_files(item, files.path) for item in value]
    if row.type is FILES:
        return [{"file": files.path(item["file"])} for item in value]
    if row.type is CERTIFICATES:
        return [{_pair_field(row): files.path(item["certificateFile"])} for item in value]
    if row.type is CERTIFICATE:
        return {_pair_field(row): files.path(value["certificateFile"])}
    if row.type is CONF_COMMANDS:
        return [
            item | {"value": files.path(item["value"])} if item["name"].lower() in _TAKES_PATHS else item
            for item in value
        ]
    return value


def _pair_field(row: Directive) -> str:
    """The field of the pair that a directive is."""
    return "keyFile" if row.part_of else "certificateFile"


def _scheme(row: Directive, arguments: Sequence[str]) -> str:
    """``data:``, ``engine:`` or ``store:`` if the argument is not a file; else nothing."""
    of_files = any(row.type is each for each in (FILE, FILES, CERTIFICATE, CERTIFICATES))
    return next((each for each in _NOT_FILES if of_files and arguments[0].startswith(each)), "")


def _without_file(row: Directive, statement: Statement, files: ConfigFiles, secret: str, scheme: str) -> Raw:
    """The replacement for a value that is not in a file.  Messages do not contain it: it may be a key."""
    reason = f'"{row.name}" directive: {scheme} cannot be carried over'
    if not secret or row.type is CERTIFICATE:
        files.problems.add(statement.location, f"{reason}; put it into a file")
        return None
    if row.type is CERTIFICATES:
        files.problems.notice(statement.location, reason)
        return [{_pair_field(row): scheme}]
    files.problems.notice(statement.location, f"{reason}; put it into {row.name} of the Secret {secret}")
    reference = {"secretKeyRef": {"name": secret, "key": row.name}}
    return [reference] if row.type is FILES else reference


def complete_blocks(mail: Block, servers: Sequence[Block], problems: Problems) -> list[str]:
    """Apply what depends on several directives: pairs of certificates and keys, inherited caches.

    Returns:
        The paths of servers with a certificate without a key, which is reported.
    """
    inherit_shared_caches(mail, servers)
    pair_upstream_certificates(mail, servers, problems)
    return pair_certificates(mail, servers, problems)


def pair_certificates(mail: Block, servers: Sequence[Block], problems: Problems) -> list[str]:
    """Pair certificates and keys by position; nginx inherits the two directives separately.

    Unpaired ones, and pairs that are replaced by a Secret, get a notice.

    Returns:
        The paths of servers with a certificate without a key, which is reported.
    """
    lacking: list[str] = []
    chains = list(mail.fields.pop("sslCertificate", ()))
    used: set[str] = set()
    for server in servers:
        own = server.fields.pop("sslCertificate", None)
        wanted, keys = own or chains, server.keys or mail.keys
        pairs = _pairs(wanted, keys)
        has_starttls = (server.starttls or mail.starttls or "Disabled") != "Disabled"
        uses_tls = has_starttls or any(each.get("ssl") for each in server.fields.get("listen", ()))
        if len(pairs) < len(wanted) and uses_tls:
            missing = wanted[len(pairs)]["certificateFile"]
            reason = f'no "ssl_certificate_key" is defined for certificate "{missing}"'
            problems.add(server.location, reason)
            lacking.append(server.path)
        if pairs and (own or server.keys):
            server.fields["sslCertificate"] = _replace_by_secrets(pairs, server, problems)
        used |= _pair_files(pairs)
        _notice_unpaired(server, own or (), used, problems)
    pairs = _pairs(chains, mail.keys)
    if pairs:
        mail.fields["sslCertificate"] = _replace_by_secrets(pairs, mail, problems)
    _notice_unpaired(mail, chains, used | _pair_files(pairs), problems)
    return lacking


def pair_upstream_certificates(mail: Block, servers: Sequence[Block], problems: Problems) -> None:
    """Pair ``proxy_ssl_certificate`` and its key; nginx inherits the two directives separately."""
    inherited = mail.fields.pop("proxySslCertificate", None)
    for server in servers:
        own = server.fields.pop("proxySslCertificate", None)
        chain, key = own or inherited, server.upstream_key or mail.upstream_key
        uses_tls = (server.fields.get("proxySsl") or mail.fields.get("proxySsl", "Disabled")) != "Disabled"
        if chain is not None and not key and uses_tls:
            reason = f'no "{UPSTREAM_KEY}" is defined for certificate "{chain["certificateFile"]}"'
            problems.add(server.location, reason)
        elif chain is not None and key and (own or server.upstream_key):
            server.fields["proxySslCertificate"] = chain | {"keyFile": key}
    if inherited is not None and mail.upstream_key:
        mail.fields["proxySslCertificate"] = inherited | {"keyFile": mail.upstream_key}


def _pairs(chains: Sequence[dict[str, Raw]], keys: Sequence[str]) -> list[dict[str, Raw]]:
    """Pairs by position; the rest of the longer list is ignored."""
    return [chain | {"keyFile": key} for chain, key in zip(chains, keys, strict=False)]


def _replace_by_secrets(pairs: Sequence[dict[str, Raw]], block: Block, problems: Problems) -> list[Raw]:
    """The pairs; those that are not in two files are replaced by a Secret."""
    named: list[Raw] = []
    for number, pair in enumerate(pairs, 1):
        if not _NOT_FILES.isdisjoint(pair.values()):
            secret = f"{block.secret}-{number}"
            halves = f"the certificate ({pair['certificateFile']}) and its key ({pair['keyFile']})"
            problems.notice(
                block.location, f"create a Secret {secret} from {halves}; the manifest refers to it"
            )
            named.append({"secretName": secret})
        else:
            named.append(pair)
    return named


def _pair_files(pairs: Sequence[dict[str, Raw]]) -> set[str]:
    return {half for pair in pairs for half in pair.values()}


def _notice_unpaired(
    block: Block, chains: Sequence[dict[str, Raw]], used: set[str], problems: Problems
) -> None:
    """Notice certificates and keys of a level that are in no pair."""
    lone = [("certificate", chain["certificateFile"]) for chain in chains]
    lone += [("key", key) for key in block.keys]
    for what, path in lone:
        if path not in used:
            location = block.locations.get(path, block.location)
            problems.notice(location, f"{what} {path} is not part of a pair and is left out")


def inherit_shared_caches(mail: Block, servers: Sequence[Block]) -> None:
    """Add the shared cache of the mail level to servers with a builtin cache.

    In nginx, ``ssl_session_cache builtin`` of a server does not replace an inherited ``shared`` cache.
    """
    inherited = mail.fields.get("sslSessionCache", ())
    shared = [part for part in inherited if part.startswith("shared:")]
    for server in servers:
        own = server.fields.get("sslSessionCache", [])
        if shared and own and all(part.startswith("builtin") for part in own):
            server.fields["sslSessionCache"] = own + shared


def merge_repeated_caches(before: Sequence[str], value: Sequence[str]) -> Sequence[str]:
    """The effect of two ``ssl_session_cache`` of one level: the last shared and the last other one."""
    if not before:
        return value
    shared = [part for part in (*before, *value) if part.startswith("shared:")][-1:]
    rest = [part for part in (*before, *value) if not part.startswith("shared:")][-1:]
    return rest if rest and not rest[0].startswith("builtin") else rest + shared
