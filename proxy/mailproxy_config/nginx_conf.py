# SPDX-License-Identifier: Apache-2.0
"""Reads an ``nginx.conf`` into the same value as a ``MailProxy`` manifest.

Only what concerns mail is read: ``mail {}``, and the few directives around it
that say how many workers there are and what they log.  The result goes through
the very checks of a manifest; what they find is told with file and line, and in
nginx's words where that can be done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final

from .addresses import WELL_KNOWN_PORTS
from .directives import (
    DIRECTIVES,
    FOLDED_DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
    by_field,
    by_name,
)
from .errors import Problem, Problems
from .manifest import API_VERSION, KIND, MOST_SERVERS, MailProxyManifest, examine
from .manifest_yaml import to_manifest_yaml
from .model import LogLevel
from .nginx_logs import NginxLogs
from .nginx_places import Places
from .nginx_syntax import Files, Statement
from .nginx_values import Block, manifest_value, pair_certificates, repeated_caches, session_caches
from .structures import LEVELS
from .values import MSEC_TIME, Raw

__all__ = ["parse_nginx", "read_nginx", "to_manifest_yaml"]

_MAIN: Final = by_name(MAIN_DIRECTIVES)
_LEVEL: Final = by_name(LEVEL_DIRECTIVES)
_SERVER: Final = by_name(SERVER_DIRECTIVES)
_FIELDS: Final = by_field(DIRECTIVES)
_PATH: Final = re.compile(r"spec\.[][.A-Za-z0-9]+")
_MAY_REPEAT: Final = frozenset({"auth_http", "protocol", "error_log", "ssl_session_cache"})
_FOLDED: Final = by_name(FOLDED_DIRECTIVES)
_SHUTDOWN: Final = Directive(
    name="worker_shutdown_timeout", module="core", type=MSEC_TIME, meaning="Becomes drain.timeout."
)
_KEY: Final = "ssl_certificate_key"
_ELSEWHERE: Final = frozenset({"mail", "server", "events", "include", *_MAIN, *_LEVEL, *_SERVER, _KEY})

_OTHER_BLOCKS: Final = frozenset({"http", "stream", "google_perftools_profiles", "rtmp", "mgmt"})
_PLUMBING: Final = frozenset(
    {
        *("daemon", "master_process", "pid", "user", "env", "load_module", "lock_file", "working_directory"),
        *("worker_rlimit_nofile", "worker_rlimit_core", "worker_priority", "worker_cpu_affinity"),
        *("worker_aio_requests", "timer_resolution", "debug_points", "pcre_jit", "ssl_engine"),
        *("thread_pool", "ssl_object_cache_inheritable"),
    }
)
_EVENTS_PLUMBING: Final = frozenset(
    {"multi_accept", "accept_mutex", "accept_mutex_delay", "use", "debug_connection", "worker_aio_requests"}
)


def parse_nginx(
    text: str,
    *,
    source: str = "",
    name: str = "mailproxy",
    namespace: str = "default",
    only_to_print: bool = False,
) -> MailProxyManifest:
    """Read an ``nginx.conf``.

    Args:
        text: The main file's text.
        source: Its path: problems name it, and paths in it are relative to its directory.
        name: The name that the resource shall have.
        namespace: Its namespace.
        only_to_print: The manifest is for a person: what cannot run from it as
            it stands (certificates that are in no file) is a notice, and a
            Secret that is to be made stands in its place.

    Raises:
        ConfigError: With everything that is wrong with it, by file and line.
    """
    return read_nginx(
        text, source=source, name=name, namespace=namespace, only_to_print=only_to_print
    ).manifest


def read_nginx(
    text: str,
    *,
    source: str,
    name: str = "mailproxy",
    namespace: str = "default",
    only_to_print: bool = False,
) -> NginxConf:
    """Like ``parse_nginx``, with what a manifest has no room for.

    Raises:
        ConfigError: With everything that is wrong with it, by file and line.
    """
    problems = Problems()
    main = os.path.abspath(source) if source else ""
    base = os.path.dirname(main) or os.getcwd()
    logs = NginxLogs(base, problems, is_carried_over=only_to_print)
    reader = _Reader(Files(base, problems, main), problems, logs, name if only_to_print else "")
    reader.read_main(text, source or "nginx.conf")
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": reader.spec()}
    found = Problems()
    manifest = examine(body, found)
    problems.found += map(reader.located, filter(reader.is_news, found.found))
    problems.found.sort(key=_by_line)
    problems.raise_if_any()
    assert manifest is not None  # noqa: S101 -- there is a spec, of our own making
    notices = (*problems.notices, *map(reader.located, found.notices))
    return NginxConf(replace(manifest, notices=tuple(dict.fromkeys(notices))), reader.places(), logs)


@dataclass(frozen=True, slots=True)
class NginxConf:
    """What was read from an ``nginx.conf``: the manifest, where everything stands, and where logs go."""

    manifest: MailProxyManifest
    places: Places
    logs: NginxLogs


class _Reader:
    """Walks over the statements and collects the fields of a manifest, and where each comes from."""

    def __init__(self, files: Files, problems: Problems, logs: NginxLogs, secrets: str = "") -> None:
        self._files = files
        self._problems = problems
        self._logs = logs
        self._secrets = secrets  # how the names of Secrets begin, where there may be some
        self._main: dict[str, Raw] = {}
        self._mail: Block | None = None
        self._servers: list[Block] = []
        self._origins: dict[str, tuple[str, str]] = {}
        self._ignored: dict[str, str] = {}
        self._has_events = False

    # --- the contexts ---

    def read_main(self, text: str, name: str) -> None:
        """Read the main context."""
        for statement in self._files.with_includes(self._files.statements(text, name)):
            match statement.name:
                case "mail":
                    self._read_mail(statement)
                case "events":
                    self._read_events(statement)
                case "worker_shutdown_timeout":
                    self._read_shutdown(statement)
                case "worker_connections":
                    self._not_here(statement)
                case word if word in _MAIN:
                    self._read_around(statement)
                case word if word in _OTHER_BLOCKS | _PLUMBING:
                    self._ignored.setdefault(word, statement.where)
                case _:
                    self._unknown(statement, (*_MAIN, "mail", "events", "worker_shutdown_timeout"))
        self._finish(name)

    def _finish(self, source: str) -> None:
        if self._ignored:
            first = next(iter(self._ignored.values()))
            names = ", ".join(f"{word} ({where})" for word, where in self._ignored.items())
            self._problems.notice(first, f"not about mail, ignored: {names}")
        if not self._servers and not self._problems:
            lacking = "mail block" if self._mail is None else "server in its mail block"
            self._problems.add(source, f"there is no {lacking}")
        if self._mail is not None:
            session_caches(self._mail, self._servers)
            pair_certificates(self._mail, self._servers, self._problems)

    def _read_mail(self, statement: Statement) -> None:
        if self._mail is not None:
            self._duplicate(statement)
            return
        self._mail = mail = Block("spec.mail", statement.where, self._secret("mail"))
        self._origins["spec.mail"] = self._origins["spec.servers"] = (statement.where, "mail")
        for inner in self._inside(statement):
            if inner.name == "server":
                self._read_server(inner)
            else:
                self._read_level(inner, mail, _LEVEL)

    def _read_server(self, statement: Statement) -> None:
        number = len(self._servers)
        secret = self._secret(f"server-{number + 1}")
        server = Block(f"spec.servers[{number}]", statement.where, secret)
        self._servers.append(server)
        self._origins[server.path] = (statement.where, "server")
        for inner in self._inside(statement):
            if inner.name == "listen":
                self._read_listen(inner, server)
            else:
                self._read_level(inner, server, _LEVEL | _SERVER)
        if "listen" not in server.seen:
            self._problems.add(statement.where, 'no "listen" is defined for server')
        elif "protocol" not in server.seen and server.fields["listen"]:
            ports = (listener.get("port") for listener in server.fields.get("listen", ()))
            known = (WELL_KNOWN_PORTS.get(port) for port in ports)
            protocol = next((str(each) for each in known if each), None)
            if protocol is None:
                self._problems.add(statement.where, "unknown mail protocol for server")
            server.fields["protocol"] = protocol or "imap"

    def _read_around(self, statement: Statement) -> None:
        """One directive around the mail block; all but ``error_log`` stand there once."""
        row = _MAIN[statement.name]
        if row.field in self._main and row.name != "error_log":
            self._duplicate(statement)
        else:
            self._read_directive(row, statement, self._main, "spec")

    def _read_events(self, statement: Statement) -> None:
        if self._has_events:
            self._duplicate(statement)
        self._has_events = True
        for inner in self._inside(statement):
            if inner.name == "worker_connections":
                self._read_around(inner)
            elif inner.name in _EVENTS_PLUMBING:
                self._ignored.setdefault(inner.name, inner.where)
            else:
                self._unknown(inner, ("worker_connections",))

    def _read_shutdown(self, statement: Statement) -> None:
        """``worker_shutdown_timeout`` is how long relays may go on when a proxy leaves."""
        timeout = manifest_value(_SHUTDOWN, statement, self._files)
        if timeout is None:
            return
        if "drain" in self._main:
            self._duplicate(statement)
        self._main["drain"] = {"timeout": timeout}
        self._origins["spec.drain.timeout"] = (statement.where, statement.name)
        if timeout.strip("0") in {"", "s", "m", "ms"}:
            del self._main["drain"]
            reason = f'"{statement.name}" 0 (no limit) is not carried over'
            self._problems.notice(statement.where, reason)

    # --- directives ---

    def _read_level(self, statement: Statement, block: Block, known: dict[str, Directive]) -> None:
        """One directive of ``mail {}`` or ``server {}``."""
        if statement.name == _KEY:
            self._read_key(statement, block)
            return
        row = known.get(statement.name)
        if row is None:
            self._unknown(statement, (*known, _KEY))
            return
        if statement.name in block.seen and not (row.type.appends or row.name in _MAY_REPEAT):
            self._duplicate(statement)
            return
        block.seen.add(statement.name)
        self._read_directive(row, statement, block.fields, block.path, block.secret)
        if row.name == "ssl_certificate":
            last = block.fields.get(row.field, ())[-1:]
            block.places |= {pair["certificateFile"]: statement.where for pair in last}

    def _secret(self, level: str) -> str:
        return f"{self._secrets}-{level}" if self._secrets else ""

    def _read_directive(
        self, row: Directive, statement: Statement, into: dict[str, Raw], path: str, secret: str = ""
    ) -> None:
        value = manifest_value(row, statement, self._files, secret)
        if value is None:
            return
        if row.name == "error_log":
            value = self._level(statement, value, into.get(row.field), path)
        elif row.name == "ssl_session_cache":
            value = repeated_caches(into.get(row.field, ()), value)
        if not row.type.appends:
            self._origins[f"{path}.{row.field}"] = (statement.where, row.name)
            into[row.field] = value
            return
        items = into.setdefault(row.field, [])
        if row.type.unordered:
            value = [word for word in value if word not in items]
        self._append(items, value, f"{path}.{row.field}", statement)

    def _append(self, items: list[Raw], more: Sequence[Raw], path: str, statement: Statement) -> None:
        """Add items to a list, and remember where each comes from."""
        origin = statement.where, statement.name
        self._origins.setdefault(path, origin)
        for item in more:
            self._origins[f"{path}[{len(items)}]"] = origin
            items.append(item)

    def _level(self, statement: Statement, value: Raw, before: Raw, path: str) -> Raw:
        """One of several logs: a manifest has one, with the level that says most."""
        try:
            self._logs.add(path, statement, LogLevel(value["level"]))
        except ValueError as error:
            self._problems.add(statement.where, f'"error_log" directive: {error}')
        levels = [each["level"] for each in (value, before) if each]
        return {"level": min(levels, key=LEVELS.index)}

    def _read_listen(self, statement: Statement, server: Block) -> None:
        server.seen.add("listen")
        listeners = manifest_value(_SERVER["listen"], statement, self._files)
        for listener in listeners or ():
            if "ipv6only" in listener and not str(listener.get("address", "")).startswith("["):
                del listener["ipv6only"]
                self._problems.notice(statement.where, "ipv6only has no meaning here and is dropped")
        found = server.fields.setdefault("listen", [])
        self._append(found, listeners or (), f"{server.path}.listen", statement)

    def _read_key(self, statement: Statement, block: Block) -> None:
        """Keys stand apart from their certificates until everything is read."""
        for pair in manifest_value(_FOLDED[_KEY], statement, self._files, block.secret) or ():
            block.keys.append(pair["keyFile"])
            block.places[pair["keyFile"]] = statement.where

    # --- the result ---

    def spec(self) -> dict[str, Raw]:
        """The ``spec`` of a manifest that says the same."""
        fields = [server.fields for server in self._servers]
        named = zip(_names(fields), fields, strict=True)
        servers = [{"name": name, **_leading(each)} for name, each in named]
        mail = {"mail": self._mail.fields} if self._mail is not None and self._mail.fields else {}
        return {**self._main, **mail, "servers": servers}

    def places(self) -> Places:
        """Where everything stands, for what is found wrong later."""
        names = _names([server.fields for server in self._servers])
        mail = self._mail or Block("spec.mail", "")
        return Places(dict(zip(names, self._servers, strict=True)), mail, self._origins)

    def located(self, problem: Problem) -> Problem:
        """A manifest's problem at the place in the ``nginx.conf`` that it comes from."""
        path = f"spec.servers[{MOST_SERVERS}]" if problem.path == "spec.servers" else problem.path
        while path and path not in self._origins:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        where, name = self._origins.get(path, ("", ""))
        if not where:
            return problem
        rest = problem.path[len(path) :].lstrip(".")
        what = f'"{_FIELDS[rest].name}" ' if rest in _FIELDS else f"{rest} " if rest else ""
        reason = problem.reason.replace("spec.mail", "mail {}")
        return Problem(where, f'"{name}": {what}{_PATH.sub(self._where, reason)}')

    def is_news(self, problem: Problem) -> bool:
        """Whether a manifest's problem has not been told in nginx's words already."""
        if problem.path == "spec.servers":
            return len(self._servers) > MOST_SERVERS
        return not problem.path.endswith(".listen") or self._origins.get(problem.path + "[0]") is not None

    def _where(self, path: re.Match[str]) -> str:
        """The place behind a path in a reason."""
        return self._origins.get(path[0], (path[0], ""))[0]

    # --- what is wrong ---

    def _inside(self, statement: Statement) -> Iterable[Statement]:
        if statement.block is None:
            self._problems.add(statement.where, f'directive "{statement.name}" has no opening "{{"')
            return ()
        if statement.arguments:
            self._wrong_arity(statement)
        return self._files.with_includes(statement.block)

    def _duplicate(self, statement: Statement) -> None:
        self._problems.add(statement.where, f'"{statement.name}" directive is duplicate')

    def _wrong_arity(self, statement: Statement) -> None:
        self._problems.add(statement.where, f'invalid number of arguments in "{statement.name}" directive')

    def _not_here(self, statement: Statement) -> None:
        self._problems.add(statement.where, f'"{statement.name}" directive is not allowed here')

    def _unknown(self, statement: Statement, known: Sequence[str]) -> None:
        if statement.name in _ELSEWHERE | _PLUMBING | _EVENTS_PLUMBING | _OTHER_BLOCKS:
            self._not_here(statement)
            return
        close = get_close_matches(statement.name[:64], known, n=1, cutoff=0.75)
        hint = f"; did you mean {close[0]}?" if close else ""
        self._problems.add(statement.where, f'unknown directive "{statement.name[:64]}"{hint}')


def _by_line(problem: Problem) -> tuple[str, int]:
    """File, then line."""
    file, _, line = problem.path.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.path, 0)


def _leading(fields: dict[str, Raw]) -> dict[str, Raw]:
    """The same fields, those first that say what a server is."""
    return {name: fields[name] for name in ("protocol", "listen") if name in fields} | fields


def _names(servers: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each server: its protocol, with its first port where that alone would not do."""
    protocols = [str(server.get("protocol", "server")) for server in servers]
    names: list[str] = []
    for index, (server, protocol) in enumerate(zip(servers, protocols, strict=True)):
        port = next((listener["port"] for listener in server.get("listen", ()) if "port" in listener), "unix")
        name = protocol if protocols.count(protocol) == 1 else f"{protocol}-{port}"
        names.append(name if name not in names else f"{name}-{index}")
    return names
