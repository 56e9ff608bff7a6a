# SPDX-License-Identifier: Apache-2.0
"""Converts an ``nginx.conf`` to a ``MailProxy`` manifest.

Only ``mail {}`` and the directives around it for workers and logs are read.  The result is
validated as a manifest; its errors are reported with file and line, and with nginx's names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from mailproxy_config.addresses import WELL_KNOWN_PORTS
from mailproxy_config.directives import FOLDED_DIRECTIVES, Directive, by_name
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.hints import SSL
from mailproxy_config.manifest import API_VERSION, KIND, MAX_SERVERS, MailProxyManifest, read_manifest
from mailproxy_config.manifest_yaml import to_manifest_yaml
from mailproxy_config.model import LogLevel
from mailproxy_config.nginx.error_log import ErrorLogs
from mailproxy_config.nginx.notices import pod_notes, read_http_servers
from mailproxy_config.nginx.source_map import NginxSourceMap
from mailproxy_config.nginx.statement_errors import StatementErrors
from mailproxy_config.nginx.syntax import (
    ConfigFiles,
    Statement,
    missing_semicolon_hint,
    split_missing_semicolons,
    swallowed_directives,
)
from mailproxy_config.nginx.upstream_block import (
    UPSTREAM_DIRECTIVES,
    begin_upstream,
    complete_upstream,
    read_upstream_directive,
)
from mailproxy_config.nginx.values import (
    EVENTS_DIRECTIVES,
    FIELDS,
    IGNORED_BECAUSE,
    KEYS,
    LEVEL,
    MAIN,
    OTHER_BLOCKS,
    PROCESS_DIRECTIVES,
    SERVER,
    Block,
    complete_blocks,
    convert_value,
    generate_server_names,
    merge_repeated_caches,
    order_server_fields,
    use_nginx_names,
)
from mailproxy_config.structured_values import LEVELS
from mailproxy_config.upstream_blocks import SETTINGS
from mailproxy_config.value_types import MSEC_TIME, Raw

__all__ = ["parse_nginx", "read_nginx", "to_manifest_yaml"]

_FOLDED: Final = by_name(FOLDED_DIRECTIVES)
_PATH: Final = re.compile(r"spec\.[][.A-Za-z0-9]+")
_MAX_LISTENERS: Final = 16
_MAY_REPEAT: Final = frozenset({"auth_http", "protocol", "error_log", "ssl_session_cache"})
_SHUTDOWN: Final = Directive(
    name="worker_shutdown_timeout", module="core", type=MSEC_TIME, meaning="Becomes drain.timeout."
)


def parse_nginx(
    text: str,
    *,
    source: str = "",
    name: str = "mailproxy",
    namespace: str = "default",
    only_to_print: bool = False,
) -> MailProxyManifest:
    """Convert an ``nginx.conf``.

    Args:
        text: The main file's text.
        source: Its path, for errors and relative paths.
        name: The name of the resource.
        namespace: Its namespace.
        only_to_print: The manifest is for ``mailproxy convert``: certificates that are not in a
            file are replaced by Secrets with a notice, instead of an error.

    Raises:
        ConfigError: With all errors, by file and line.
    """
    return read_nginx(text, source=source, name=name, namespace=namespace, only_to_print=only_to_print)[0]


def read_nginx(
    text: str,
    *,
    source: str,
    name: str = "mailproxy",
    namespace: str = "default",
    only_to_print: bool = False,
) -> tuple[MailProxyManifest, NginxSourceMap]:
    """Like ``parse_nginx``, and return the source map as well.

    Raises:
        ConfigError: With all errors, by file and line.
    """
    problems = Problems()
    main = os.path.abspath(source) if source else ""
    base = os.path.dirname(main) or os.getcwd()
    logs = ErrorLogs(base, problems, is_printed=only_to_print)
    reader = _Reader(ConfigFiles(base, problems, main), problems, logs, name if only_to_print else "")
    reader.read_main(text, source or "nginx.conf")
    metadata = {"name": name, "namespace": namespace}
    body: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": reader.spec(),
    }
    found = Problems()
    manifest = read_manifest(body, found)
    if only_to_print:
        found.notices += pod_notes(body["spec"])
    problems.found += map(reader.located, filter(reader.is_independent, found.found))
    problems.found.sort(key=_by_line)
    assert manifest is not None  # noqa: S101 -- the body has a spec
    notices = sorted((*problems.notices, *map(reader.located, found.notices)), key=_by_line)
    result = replace(manifest, notices=tuple(dict.fromkeys(notices))), reader.source_map()
    problems.raise_if_any(partial=result)
    return result


class _Reader(StatementErrors):
    """Converts statements to the fields of a manifest, and records the origin of each field."""

    def __init__(self, files: ConfigFiles, problems: Problems, logs: ErrorLogs, secrets: str = "") -> None:
        super().__init__(problems)
        self._files = files
        self._logs = logs
        self._secrets = secrets  # prefix of the names of Secrets; empty: they are not allowed
        self._main: dict[str, Raw] = {}
        self._mail: Block | None = None
        self._servers: list[Block] = []
        self._origins: dict[str, tuple[str, str]] = {}
        self._ignored: dict[str, str] = {}
        self._http: list[Statement] = []
        self._services: list[tuple[str, str]] = []
        self._upstreams: list[Block] = []
        self._has_events = False
        self._unreadable = 0

    # --- contexts ---

    def read_main(self, text: str, name: str) -> None:
        """Read the main context."""
        for statement in self._statements(self._files.statements(text, name), "spec"):
            match statement.name:
                case "mail":
                    self._read_mail(statement)
                case "events":
                    self._read_events(statement)
                case "worker_shutdown_timeout":
                    self._read_shutdown(statement)
                case "worker_connections":
                    self._not_here(statement)
                case word if word in MAIN:
                    self._read_main_directive(statement)
                case word if word in OTHER_BLOCKS | PROCESS_DIRECTIVES:
                    self._read_ignored(statement)
                case _:
                    known = (*MAIN, "mail", "events", "worker_shutdown_timeout")
                    self._unknown(statement, known, "spec")
        self._finish(name)

    def _read_ignored(self, statement: Statement) -> None:
        """Record a directive of other modules or about processes."""
        name = statement.name
        if name == "http":
            self._http.append(statement)
        if name not in IGNORED_BECAUSE:
            self._ignored.setdefault(name, statement.location)
        elif name != "daemon" or statement.arguments == ("on",):
            self._problems.notice(statement.location, f'"{name}" is ignored: {IGNORED_BECAUSE[name]}')

    def _finish(self, source: str) -> None:
        if self._ignored:
            first = next(iter(self._ignored.values()))
            names = ", ".join(f"{word} ({location})" for word, location in self._ignored.items())
            self._problems.notice(first, f"not about mail, ignored: {names}")
        if not self._servers and not self._problems:
            lacking = "mail block" if self._mail is None else "server in its mail block"
            self._problems.add(source, f"there is no {lacking}{self._misplaced_mail()}")
        if self._mail is not None:
            servers = self._servers[:MAX_SERVERS]
            for path in complete_blocks(self._mail, servers, self._problems):
                self._lost.add(path, "ssl_certificate")
        self._notice_http_services()

    def _misplaced_mail(self) -> str:
        """A hint if ``mail {}`` is inside ``http {}``, which is not read."""
        inner = (each for block in self._http for each in block.block or () if each.name == "mail")
        found = next(inner, None)
        hint = (
            f": the one in {found.location} is inside http {{}}; move it to the main context" if found else ""
        )
        return hint

    def _notice_http_services(self) -> None:
        """Notice authentication services that nginx itself runs in ``http {}``."""
        if not self._http or not self._services:
            return
        servers = read_http_servers(self._http, self._files.base, self._files.main)
        for location, url in self._services:
            served = next((server.location for server in servers if server.serves(url)), None)
            if served is not None:
                self._problems.notice(
                    location,
                    f'"auth_http" {url[:200]} is served by http {{}} of this configuration ({served}), which '
                    "the proxy does not run: keep an nginx for it, or move the service elsewhere",
                )

    def _read_mail(self, statement: Statement) -> None:
        if self._mail is not None:
            self._duplicate(statement)
            return
        self._mail = mail = Block("spec.mail", statement.location, self._secret("mail"))
        self._origins["spec.mail"] = self._origins["spec.servers"] = (statement.location, "mail")
        for inner in self._block_statements(statement, mail.path):
            if inner.name == "server":
                self._read_server(inner)
            elif inner.name == "upstream":
                self._read_upstream(inner)
            else:
                self._read_level(inner, mail, LEVEL)

    def _read_server(self, statement: Statement) -> None:
        number = len(self._servers)
        secret = self._secret(f"server-{number + 1}")
        server = Block(f"spec.servers[{number}]", statement.location, secret)
        self._servers.append(server)
        self._origins[server.path] = (statement.location, "server")
        if number >= MAX_SERVERS:
            return  # the number of servers is reported
        for inner in self._block_statements(statement, server.path):
            if inner.name == "listen":
                self._read_listen(inner, server)
            else:
                self._read_level(inner, server, LEVEL | SERVER)
        self._derive_protocol(statement, server)

    def _read_upstream(self, statement: Statement) -> None:
        block = Block(f"spec.upstreams[{len(self._upstreams)}]", statement.location)
        self._upstreams.append(block)
        self._origins[block.path] = (statement.location, "upstream")
        lines = begin_upstream(statement, block, self._problems)
        if not lines:
            self._lost.add(block.path)
        for inner in self._statements(lines, block.path):
            if inner.name in UPSTREAM_DIRECTIVES:
                read_upstream_directive(inner, block, self._origins, self._problems)
            else:
                self._read_level(inner, block, SETTINGS)

    def _derive_protocol(self, statement: Statement, server: Block) -> None:
        """Derive the protocol of a server without ``protocol``."""
        if "listen" not in server.seen:
            if not self._lost.has(server.path, "listen"):
                self._problems.add(statement.location, 'no "listen" is defined for server')
        elif "protocol" not in server.seen and server.fields["listen"]:
            ports = (listener.get("port") for listener in server.fields.get("listen", ()))
            known = (WELL_KNOWN_PORTS.get(port) for port in ports)
            protocol = next((str(each) for each in known if each), None)
            if protocol is None and not self._lost.has(server.path, "protocol", "listen"):
                reason = "unknown mail protocol for server: add a line such as protocol imap;"
                self._problems.add(statement.location, reason)
            server.fields["protocol"] = protocol or "imap"

    def _read_main_directive(self, statement: Statement) -> None:
        """Read a directive of the main context; only ``error_log`` may be repeated."""
        row = MAIN[statement.name]
        if row.field in self._main and row.name != "error_log":
            self._duplicate(statement)
        else:
            self._read_directive(row, statement, self._main, "spec")

    def _read_events(self, statement: Statement) -> None:
        if self._has_events:
            self._duplicate(statement)
        self._has_events = True
        for inner in self._block_statements(statement, "spec"):
            if inner.name == "worker_connections":
                self._read_main_directive(inner)
            elif inner.name in EVENTS_DIRECTIVES:
                self._ignored.setdefault(inner.name, inner.location)
            else:
                self._unknown(inner, ("worker_connections",), "spec")

    def _read_shutdown(self, statement: Statement) -> None:
        """Convert ``worker_shutdown_timeout`` to ``drain.timeout``."""
        timeout = convert_value(_SHUTDOWN, statement, self._files)
        if timeout is None:
            return
        if "drain" in self._main:
            self._duplicate(statement)
        self._main["drain"] = {"timeout": timeout}
        self._origins["spec.drain.timeout"] = (statement.location, statement.name)
        if timeout.strip("0") in {"", "s", "m", "ms"}:
            del self._main["drain"]
            reason = f'"{statement.name}" 0 (no limit) is not carried over'
            self._problems.notice(statement.location, reason)

    # --- directives ---

    def _read_level(self, statement: Statement, block: Block, known: dict[str, Directive]) -> None:
        """Read a directive of ``mail {}`` or ``server {}``."""
        if statement.name in KEYS:
            self._read_key(statement, block)
            return
        row = known.get(statement.name)
        if row is None:
            self._report_other(statement, block, known)
            return
        if statement.name in block.seen and not (row.type.appends or row.name in _MAY_REPEAT):
            self._duplicate(statement)
            return
        block.seen.add(statement.name)
        self._read_directive(row, statement, block.fields, block.path, block.secret)
        if row.name == "ssl_certificate":
            last = block.fields.get(row.field, ())[-1:]
            block.locations |= {pair["certificateFile"]: statement.location for pair in last}

    def _report_other(self, statement: Statement, block: Block, known: dict[str, Directive]) -> None:
        """Report a directive that is unknown, or not allowed here."""
        if statement.name == "ssl" and statement.arguments == ("off",):
            reason = '"ssl off" is dropped: since nginx 1.25.1 TLS is a parameter, "listen … ssl"'
            self._problems.notice(statement.location, reason)
        elif statement.name == "ssl":
            self._problems.add(statement.location, f'unknown directive "ssl": {SSL}')
        else:
            self._unknown(statement, (*known, *KEYS), block.path)

    def _secret(self, level: str) -> str:
        return f"{self._secrets}-{level}" if self._secrets else ""

    def _read_directive(
        self, row: Directive, statement: Statement, into: dict[str, Raw], path: str, secret: str = ""
    ) -> None:
        value = self._value(row, statement, path, secret)
        if value is None:
            return
        if row.name == "auth_http":
            self._services.append((statement.location, value))
        if row.name == "error_log":
            value = self._level(statement, value, into.get(row.field), path)
        elif row.name == "ssl_session_cache":
            value = merge_repeated_caches(into.get(row.field, ()), value)
        if not row.type.appends:
            self._origins[f"{path}.{row.field}"] = (statement.location, row.name)
            into[row.field] = value
            return
        items = into.setdefault(row.field, [])
        if row.type.unordered:
            value = [word for word in value if word not in items]
        self._append(items, value, f"{path}.{row.field}", statement)

    def _value(self, row: Directive, statement: Statement, level: str, secret: str = "") -> Raw:
        """The manifest value of a statement.  If it is invalid, record it as lost."""
        before = len(self._problems)
        value = convert_value(row, statement, self._files, secret)
        if value is None:
            self._lost.add(level, row.name, *swallowed_directives(statement))
            hint = missing_semicolon_hint(statement)
            for index in range(before, len(self._problems) if hint else before):
                problem = self._problems.found[index]
                self._problems.found[index] = replace(problem, reason=problem.reason + hint)
        return value

    def _append(self, items: list[Raw], more: Sequence[Raw], path: str, statement: Statement) -> None:
        """Append items to a list, and record the origin of each."""
        origin = statement.location, statement.name
        self._origins.setdefault(path, origin)
        for item in more:
            self._origins[f"{path}[{len(items)}]"] = origin
            items.append(item)

    def _level(self, statement: Statement, value: Raw, before: Raw, path: str) -> Raw:
        """Merge several logs: a manifest has one level, the lowest of them."""
        try:
            self._logs.add(path, statement, LogLevel(value["level"]))
        except ValueError as error:
            self._problems.add(statement.location, f'"error_log" directive: {error}')
        levels = [each["level"] for each in (value, before) if each]
        return {"level": min(levels, key=LEVELS.index)}

    def _read_listen(self, statement: Statement, server: Block) -> None:
        server.seen.add("listen")
        found = server.fields.setdefault("listen", [])
        if len(found) > _MAX_LISTENERS:
            return  # the number of listeners is reported
        listeners = self._value(SERVER["listen"], statement, server.path)
        for listener in listeners or ():
            if "ipv6only" in listener and not str(listener.get("address", "")).startswith("["):
                del listener["ipv6only"]
                reason = "ipv6only has no effect without an IPv6 address and is dropped"
                self._problems.notice(statement.location, reason)
        self._append(found, listeners or (), f"{server.path}.listen", statement)

    def _read_key(self, statement: Statement, block: Block) -> None:
        """Record a key; keys and certificates are paired at the end."""
        value = self._value(_FOLDED[statement.name], statement, block.path, block.secret)
        if value is not None and not block.add_key(statement, value):
            self._duplicate(statement)

    # --- result ---

    def spec(self) -> dict[str, Raw]:
        """The ``spec`` of the manifest."""
        fields = [server.fields for server in self._servers]
        named = zip(generate_server_names(fields), fields, strict=True)
        servers = [{"name": name, **order_server_fields(each)} for name, each in named]
        mail = {"mail": self._mail.fields} if self._mail is not None and self._mail.fields else {}
        groups = [complete_upstream(block, self._problems) for block in self._upstreams]
        upstreams = {"upstreams": groups} if groups else {}
        return {**self._main, **mail, **upstreams, "servers": servers}

    def source_map(self) -> NginxSourceMap:
        """The source map."""
        names = generate_server_names([server.fields for server in self._servers])
        mail = self._mail or Block("spec.mail", "")
        return NginxSourceMap(dict(zip(names, self._servers, strict=True)), mail, self._origins, self._logs)

    def located(self, problem: Problem) -> Problem:
        """Map a problem of the manifest to its file and line."""
        path = f"spec.servers[{MAX_SERVERS}]" if problem.path == "spec.servers" else problem.path
        while path and path not in self._origins:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        location, name = self._origins.get(path, ("", ""))
        if not location:
            return problem
        rest = problem.path[len(path) :].lstrip(".")
        what = f'"{FIELDS[rest].name}" ' if rest in FIELDS else f"{rest} " if rest else ""
        reason = use_nginx_names(problem.reason.replace("spec.mail", "mail {}"))
        return Problem(
            location,
            f'"{name}": {what}{_PATH.sub(lambda path: self._origins.get(path[0], (path[0], ""))[0], reason)}',
        )

    def is_independent(self, problem: Problem) -> bool:
        """Whether a problem of the manifest is not a consequence of a reported error."""
        if problem.path == "spec.servers":
            return len(self._servers) > MAX_SERVERS
        level, _, field = problem.path.rpartition(".")
        if field in FIELDS and self._is_consequence(problem.path, level, FIELDS[field].name):
            return False
        return not problem.path.endswith(".listen") or self._origins.get(problem.path + "[0]") is not None

    def _is_consequence(self, path: str, level: str, name: str) -> bool:
        """Whether a directive is missing only because of a reported error."""
        if name == "ssl_verify_client":
            return self._lost.has(level, "ssl_client_certificate", "ssl_trusted_certificate")
        is_written = path in self._origins and name != "ssl_certificate"  # its key may be missing
        return not is_written and self._lost.has(level, name)

    # --- errors ---

    def _block_statements(self, statement: Statement, level: str) -> Iterable[Statement]:
        if statement.block is None:
            self._problems.add(statement.location, f'directive "{statement.name}" has no opening "{{"')
            self._lost.add(level)
            return ()
        if statement.arguments:
            reason = f'invalid number of arguments in "{statement.name}" directive'
            self._problems.add(statement.location, reason)
        return self._statements(statement.block, level)

    def _statements(self, block: tuple[Statement, ...], level: str) -> Iterator[Statement]:
        """The statements of a block; directives of a file that cannot be read count as lost."""
        for statement in self._files.with_includes(block):
            self._count_unreadable(level)
            yield from split_missing_semicolons(statement, self._problems)
        self._count_unreadable(level)

    def _count_unreadable(self, level: str) -> None:
        if self._files.broken > self._unreadable:
            self._lost.add(level)
            self._unreadable = self._files.broken


def _by_line(problem: Problem) -> tuple[str, int]:
    """Sort key: file, then line."""
    file, _, line = problem.path.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.path, 0)
