# SPDX-License-Identifier: Apache-2.0
"""Runs a health check of Argo CD, which is a Lua script with the global ``obj``, in a Lua interpreter."""

from __future__ import annotations

from support.guides.blocks import Object, Page
from support.servers.programs import run_program

_KEY = "resource.customizations.health.mailproxy.dev_MailProxy"


def health(lua: str, body: Object) -> tuple[str, str]:
    """Return the status and the message that the page's health check gives an object.

    Args:
        lua: The path of the interpreter; Argo CD's is of version 5.1 too.
        body: The object.
    """
    script = Page("gitops.md").object("health")["data"][_KEY]
    text = f"obj = {_literal(body)}\nlocal function check()\n{script}\nend\nlocal hs = check()\n"
    said = run_program([lua, "-"], stdin=text + 'io.write(hs.status, "\\n", hs.message)')
    status, _, message = said.partition("\n")
    return status, message


def _literal(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"[{_literal(key)}] = {_literal(one)}" for key, one in value.items()) + "}"
        case list():
            return "{" + ", ".join(_literal(one) for one in value) + "}"
        case bool():
            return "true" if value else "false"
        case None:
            return "nil"
        case str():
            return '"' + "".join(f"\\{byte:03d}" for byte in value.encode()) + '"'
        case _:
            return str(value)
