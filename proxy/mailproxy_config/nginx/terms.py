# SPDX-License-Identifier: Apache-2.0
"""Which directives of nginx stand where, and what a server of an ``nginx.conf`` is called in a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from mailproxy_config.directives import (
    DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    by_field,
    by_name,
)
from mailproxy_config.value_types import Raw

MAIN: Final = by_name(MAIN_DIRECTIVES)
"""Directives of ours that stand outside of ``mail {}``."""
LEVEL: Final = by_name(LEVEL_DIRECTIVES)
"""Directives of ``mail {}`` and of its servers."""
SERVER: Final = by_name(SERVER_DIRECTIVES)
"""Directives of servers alone."""
FIELDS: Final = by_field(DIRECTIVES)
"""Directives by the names of a manifest."""
KEY: Final = "ssl_certificate_key"
"""The directive without a field of its own."""
ELSEWHERE: Final = frozenset({"mail", "server", "events", "include", *MAIN, *LEVEL, *SERVER, KEY})
"""Everything that we know somewhere."""

OTHER_BLOCKS: Final = frozenset({"http", "stream", "google_perftools_profiles", "rtmp", "mgmt"})
PLUMBING: Final = frozenset(
    {
        *("daemon", "master_process", "pid", "user", "env", "load_module", "lock_file", "working_directory"),
        *("worker_rlimit_nofile", "worker_rlimit_core", "worker_priority", "worker_cpu_affinity"),
        *("worker_aio_requests", "timer_resolution", "debug_points", "pcre_jit", "ssl_engine"),
        *("thread_pool", "ssl_object_cache_inheritable"),
    }
)
"""Directives about processes, which are accepted and ignored."""
EVENTS_PLUMBING: Final = frozenset(
    {"multi_accept", "accept_mutex", "accept_mutex_delay", "use", "debug_connection", "worker_aio_requests"}
)
"""The same in ``events {}``."""
REMARKS: Final = {
    "user": "the proxy runs as the user that starts it, and does not change users",
    "pid": "no file with the number of the process is written",
    "worker_rlimit_nofile": "the proxy raises its limit of open files up to the hard limit (ulimit -Hn)",
    "daemon": "the proxy stays in the foreground",
    "ssl_engine": "engines of OpenSSL are not used",
}
"""Ignored directives that people rely on, and what is so instead."""

_QUOTED_FIELD: Final = re.compile(r'"([a-z][a-z0-9]*[A-Z][A-Za-z0-9]*)"')
_OUTSIDE: Final = "outside of every block"


def place_of(name: str) -> str:
    """Where a directive stands that nginx has, such as ``in server {}``."""
    if name in SERVER:
        return "in server {}"
    if name in LEVEL or name == KEY:
        return f"{_OUTSIDE}, in mail {{}} or in server {{}}" if name in MAIN else "in mail {} or server {}"
    if name == "server":
        return "in mail {}"
    return "in events {}" if name == "worker_connections" or name in EVENTS_PLUMBING else _OUTSIDE


def in_nginx_words(reason: str) -> str:
    """A reason in which fields of a manifest that stand in quotes have nginx's names."""

    def name(field: re.Match[str]) -> str:
        row = FIELDS.get(field[1])
        return f'"{row.name}"' if row is not None else field[0]

    return _QUOTED_FIELD.sub(name, reason)


def leading(fields: dict[str, Raw]) -> dict[str, Raw]:
    """The same fields, those first that say what a server is."""
    return {name: fields[name] for name in ("protocol", "listen") if name in fields} | fields


def server_names(servers: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each server: its protocol, with its first port where that alone would not do."""
    protocols = [str(server.get("protocol", "server")) for server in servers]
    counts = Counter(protocols)
    names: dict[str, None] = {}
    for index, (server, protocol) in enumerate(zip(servers, protocols, strict=True)):
        port = next((listener["port"] for listener in server.get("listen", ()) if "port" in listener), "unix")
        name = protocol if counts[protocol] == 1 else f"{protocol}-{port}"
        names[name if name not in names else f"{name}-{index}"] = None
    return list(names)
