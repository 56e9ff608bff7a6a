# SPDX-License-Identifier: Apache-2.0
"""Everything that is known about a configuration before it runs; for ``check``, ``run`` and reloads alike.

The text is read, the files that it refers to are looked for, and TLS is put to
work once.  All of it happens even where some of it fails, so that every
problem is reported in one go, with the same words and the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import NOT_REGULAR, Loaded, check_files, is_mounted, load
from mailproxy_config.model import ProxyConfig

_LINE = re.compile(r"(.*):([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        loaded: The configuration, as far as it could be read where there are problems;
            ``None`` where it could not be read at all.
        problems: What prevents it from running, each once.
        notices: What is accepted but worth telling, each once.
        absent: Files from Secrets and ConfigMaps that are not here: a problem where it is to run,
            none where it is only checked.
    """

    loaded: Loaded | None
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]
    absent: tuple[Problem, ...]

    def runnable(self) -> Loaded:
        """The configuration that is to run.

        Raises:
            ConfigError: With every problem, absent files among them.
        """
        problems = in_order((*self.problems, *self.absent))
        if problems or self.loaded is None:
            raise ConfigError(problems, partial=self.loaded)
        return self.loaded


def judge(text: bytes, *, source: str, hostname: str) -> Verdict:
    """Find out everything about a configuration.

    Args:
        text: The content of its file.
        source: The file's path, for problems.
        hostname: The machine's name.
    """
    try:
        loaded: Loaded | None = load(text, source=source, hostname=hostname)
        problems: tuple[Problem, ...] = ()
    except ConfigError as error:
        loaded, problems = error.partial, error.problems
    if loaded is None:
        return Verdict(loaded=None, problems=problems, notices=(), absent=())
    missing = check_files(loaded.config, kind=loaded.kind)
    tls, notices = _tls(loaded.config, missing)
    located = loaded.located
    absent = [problem for problem in missing if is_mounted(problem)]
    lacking = [problem for problem in missing if not is_mounted(problem)]
    return Verdict(
        loaded=loaded,
        problems=in_order((*problems, *map(located, lacking), *map(located, tls))),
        notices=in_order((*loaded.notices, *_once(map(located, notices)))),
        absent=in_order(map(located, absent)),
    )


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Each problem once; those of lines of a file by line, the others as they come."""
    return tuple(sorted(dict.fromkeys(problems), key=_line))


def _line(problem: Problem) -> tuple[str, int]:
    found = _LINE.fullmatch(problem.path)
    return (found[1], int(found[2])) if found else ("", 0)


def _once(notices: Iterable[Problem]) -> Iterator[Problem]:
    """One notice for what is true of the process, and so of every server."""
    seen: set[str] = set()
    for notice in notices:
        reason = notice.reason.rpartition('": ')[2]
        if reason not in seen:
            seen.add(reason)
            yield notice


def _tls(config: ProxyConfig, missing: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """What OpenSSL refuses, and what it serves otherwise than asked; missing files are known already."""
    if not any(server.tls_is_used for server in config.servers):
        return [], []
    # Not at the top: ``check`` of a configuration without TLS needs no OpenSSL.
    from mailproxy.tls.check import check_tls  # noqa: PLC0415

    paths = [problem.reason.partition(": ")[0] for problem in missing]
    endless = {problem.path.partition(".")[0] for problem in missing if NOT_REGULAR in problem.reason}
    found: tuple[list[Problem], list[Problem]] = ([], [])
    for index, server in enumerate(config.servers):
        if server.tls_is_used and f"servers[{index}]" not in endless:
            rename = _renamed(f"servers[{server.name}]", f"servers[{index}]")
            problems, notices = check_tls(server)
            found[0].extend(
                rename(problem) for problem in problems if not any(path in problem.reason for path in paths)
            )
            found[1].extend(map(rename, notices))
    return found


def _renamed(name: str, index: str) -> Callable[[Problem], Problem]:
    """Servers by number: in a configuration with errors two may have one name."""
    return lambda problem: Problem(problem.path.replace(name, index, 1), problem.reason)


def described(verdict: Verdict, source: str) -> str:
    """One line about a configuration without problems: ``nginx.conf: ok, 4 servers, 6 listeners``."""
    assert verdict.loaded is not None  # noqa: S101 -- it has no problems
    servers = verdict.loaded.config.servers
    listeners = sum(len(server.listen) for server in servers)
    return f"{source}: ok, {_counted(len(servers), 'server')}, {_counted(listeners, 'listener')}"


def printable(problem: Problem) -> str:
    """A problem as one line: a terminal obeys control characters, and a file may hold any."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(problem))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
