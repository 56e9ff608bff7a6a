# SPDX-License-Identifier: Apache-2.0
"""Checks a configuration before it runs: for ``mailproxy check``, ``run`` and reloads.

The file is parsed, the files that it refers to are checked, and TLS contexts
are created.  All steps run even where one fails, so that all problems are
reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mailproxy.routing.table_files import LoadedTables, TableFile, load_tables
from mailproxy.tls.inputs import tls_files
from mailproxy.users.user_files import LoadedUsers, load_users
from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import NOT_REGULAR, Loaded, check_files, is_mounted, load
from mailproxy_config.model import ProxyConfig

if TYPE_CHECKING:
    from mailproxy.tls.check import TlsCheck
    from mailproxy.tls.context import ServerTls

_LINE = re.compile(r"(.*):([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of a check.

    Attributes:
        loaded: The configuration; where there are problems, the part that could be parsed, or ``None``.
        problems: Errors, each once.
        notices: Warnings, each once.
        absent: Missing files of Secrets and ConfigMaps: errors for ``run``, but not for ``check``.
        certificates: Certificates that clients choose by name and that are not used: errors for ``check``,
            but not for ``run``, which serves the others.
        tls: The TLS of each server by name, for the next check.
        tables: The tables of routes, for workers and for the next check.
        users: The lists of users, likewise.
    """

    loaded: Loaded | None
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]
    absent: tuple[Problem, ...]
    certificates: tuple[Problem, ...] = ()
    tls: Mapping[str, ServerTls] = field(default_factory=dict)
    tables: LoadedTables = field(default_factory=LoadedTables)
    users: LoadedUsers = field(default_factory=LoadedUsers)

    def runnable(self) -> Loaded:
        """Return the configuration to run.

        Raises:
            ConfigError: With every problem, absent files among them.
        """
        problems = sort_problems((*self.problems, *self.absent))
        if problems or self.loaded is None:
            raise ConfigError(problems, partial=self.loaded)
        return self.loaded


def check_config(
    text: bytes,
    *,
    source: str,
    hostname: str,
    previous: Mapping[str, ServerTls] | None = None,
    tables: Mapping[str, TableFile] | None = None,
    users: Mapping[str, TableFile] | None = None,
) -> CheckResult:
    """Check a configuration.

    Args:
        text: The content of its file.
        source: The file's path, for error messages.
        hostname: The machine's name.
        previous: ``tls`` of an earlier result.
        tables: The files of ``tables`` of an earlier result.
        users: The files of ``users`` of an earlier result.
    """
    try:
        loaded: Loaded | None = load(text, source=source, hostname=hostname)
        problems: tuple[Problem, ...] = ()
    except ConfigError as error:
        loaded, problems = error.partial, error.problems
    if loaded is None:
        return CheckResult(loaded=None, problems=problems, notices=(), absent=())
    routing = load_tables(loaded.config, tables or {})
    listed = load_users(loaded.config, users or {})
    missing = _missing_files(loaded, (*routing.kept, *listed.kept))
    checks = _tls(loaded.config, missing, previous or {})
    tls = [problem for check in checks.values() for problem in check.problems]
    notices = [notice for check in checks.values() for notice in check.notices]
    certificates = [problem for check in checks.values() for problem in check.certificates]
    located = loaded.located
    absent = [problem for problem in missing if is_mounted(problem)]
    lacking = [problem for problem in missing if not is_mounted(problem)]
    return CheckResult(
        loaded=loaded,
        problems=sort_problems(
            (*problems, *map(located, lacking), *map(located, tls), *_invalid_lines(routing, listed, missing))
        ),
        notices=sort_problems((*loaded.notices, *_unique_notices(map(located, notices)))),
        absent=sort_problems(map(located, absent)),
        certificates=sort_problems(map(located, certificates)),
        tls={name: check.tls for name, check in checks.items() if check.tls is not None},
        tables=routing,
        users=listed,
    )


def _missing_files(loaded: Loaded, refused: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the files that cannot be read, without those of which an earlier version is used."""
    kept = {problem.path for problem in refused}
    missing = check_files(loaded.config, kind=loaded.kind)
    return tuple(problem for problem in missing if problem.reason.partition(": ")[0] not in kept)


def _invalid_lines(
    routing: LoadedTables, users: LoadedUsers, missing: Iterable[Problem]
) -> Iterator[Problem]:
    """Yield what is wrong with tables and lists of users that can be read."""
    paths = {problem.reason.partition(": ")[0] for problem in missing}
    found = (*routing.errors, *users.errors)
    return (problem for problem in found if problem.path not in paths)


def sort_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Remove duplicates, and sort the problems that have a line by their lines."""
    return tuple(sorted(dict.fromkeys(problems), key=_line))


def _line(problem: Problem) -> tuple[str, int]:
    found = _LINE.fullmatch(problem.path)
    return (found[1], int(found[2])) if found else ("", 0)


def _unique_notices(notices: Iterable[Problem]) -> Iterator[Problem]:
    """Yield one notice for what applies to the process, and therefore to every server."""
    seen: set[str] = set()
    for notice in notices:
        reason = notice.reason.rpartition('": ')[2]
        if reason not in seen:
            seen.add(reason)
            yield notice


def _tls(
    config: ProxyConfig, missing: Iterable[Problem], previous: Mapping[str, ServerTls]
) -> dict[str, TlsCheck]:
    """Return what OpenSSL rejects, and what it changes, by server; missing files are reported elsewhere."""
    if not any(server.tls_is_used for server in config.servers):
        return {}
    # Not at the top: ``check`` of a configuration without TLS needs no OpenSSL.
    from mailproxy.tls.check import check_tls  # noqa: PLC0415

    paths = [problem.reason.partition(": ")[0] for problem in missing]
    endless = {problem.path.partition(".")[0] for problem in missing if NOT_REGULAR in problem.reason}
    found: dict[str, TlsCheck] = {}
    for index, server in enumerate(config.servers):
        if server.tls_is_used and f"servers[{index}]" not in endless:
            rename = _with_index(f"servers[{server.name}]", f"servers[{index}]")
            check = check_tls(server, previous.get(server.name))
            problems = (one for one in check.problems if not any(path in one.reason for path in paths))
            found[server.name] = replace(
                check,
                problems=tuple(map(rename, problems)),
                notices=tuple(map(rename, check.notices)),
                certificates=tuple(map(rename, check.certificates)),
            )
    return found


def _with_index(name: str, index: str) -> Callable[[Problem], Problem]:
    """Replace names of servers by numbers: in an invalid configuration two may have the same name."""
    return lambda problem: Problem(problem.path.replace(name, index, 1), problem.reason)


def summary(result: CheckResult, source: str) -> str:
    """Return one line about a valid configuration: ``nginx.conf: ok, 4 servers, 6 listeners``."""
    assert result.loaded is not None  # noqa: S101 -- it has no problems
    servers = result.loaded.config.servers
    listeners = sum(len(server.listen) for server in servers)
    return f"{source}: ok, {_plural(len(servers), 'server')}, {_plural(listeners, 'listener')}"


def format_problem(problem: Problem) -> str:
    """Return a problem as one line, with control characters escaped: a file may contain any."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(problem))


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def read_config(path: Path, *, once: bool = False) -> bytes:
    """Read a configuration file, up to one byte more than the maximum size.

    Args:
        path: The file.
        once: The file is not read again, so it may be a pipe.

    Raises:
        ConfigError: It cannot be read, or is a pipe or a device, which a reload could not read again.
    """
    if not once and path.exists() and not path.is_file() and not path.is_dir():
        reason = "is not a regular file: run reads it again at every reload"
        raise ConfigError([Problem(str(path), reason)])
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error


def referenced_files(config: ProxyConfig) -> frozenset[Path]:
    """Return the files that a configuration refers to: certificates, keys, header values, tables, users."""
    tls = (path for server in config.servers for path in tls_files(server))
    headers = (header.value_file for server in config.servers for header in server.auth_http_header)
    logins = (
        path
        for server in config.servers
        for each in server.with_groups
        for _, path in each.upstream_login_files
    )
    tables = (route.table for server in config.servers for route in server.route)
    users = (server.used_user_file for server in config.servers)
    return frozenset(Path(path) for path in (*tls, *headers, *logins, *tables, *users) if path is not None)
