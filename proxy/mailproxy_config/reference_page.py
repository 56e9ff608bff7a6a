# SPDX-License-Identifier: Apache-2.0
"""Generates ``docs/reference/directives.md``: ``python -m mailproxy_config.reference_page``.

A test fails if the page in the repository is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from mailproxy_config.directives import (
    FOLDED_DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
    Inheritance,
)
from mailproxy_config.kubernetes_schema import DEPLOYMENT_MEANINGS
from mailproxy_config.listen_directive import LISTEN_PARAMETERS
from mailproxy_config.value_types import Raw, format_default

_MODULES: Final = {
    "mail_core": "Core",
    "mail_auth_http": "Authentication service",
    "mail_proxy": "Proxy",
    "mail_realip": "Real client address",
    "mail_ssl": "TLS",
    "mail_imap": "IMAP",
    "mail_pop3": "POP3",
    "mail_smtp": "SMTP",
}
_HEAD: Final = """\
# Directives

<!-- Made by `python -m mailproxy_config.reference_page` from the table of directives. Do not edit. -->

The fields of a `MailProxy` are nginx's mail directives in lowerCamelCase: `auth_http_timeout` is
`authHttpTimeout`. Every directive of `spec.mail` is also allowed in `spec.servers[]`, and the value of the
server takes precedence. A list of the server replaces the list of `spec.mail` as a whole. A directive that
is not set has the default of the table.

* Flags (`on` or `off` in nginx) are booleans. Directives with a third value are enumerations without the
  words `on` and `off`, because YAML reads these as booleans.
* Times are written as in nginx: `500ms`, `60s`, `1m30s`, `24h`. A number without unit is in seconds.
* Sizes are written as in nginx: `512`, `4k`, `10m`. A number without unit is in bytes.
* Files are references to Secrets or ConfigMaps, `{secretKeyRef: {name, key}}` or
  `{configMapKeyRef: {name, key}}`, or paths, `{file: /path}`.
"""
_FORMS: Final = """\
## Listeners

Fields of the items of `listen`. All but `address` and `port` are nginx's parameters.
"""


def render_page() -> str:
    """The whole page, in Markdown."""
    lines = [
        _HEAD,
        "## Main and events context\n",
        *_table(MAIN_DIRECTIVES),
        "",
        _FORMS,
        *_listen_table(),
    ]
    rows = (*SERVER_DIRECTIVES, *LEVEL_DIRECTIVES, *FOLDED_DIRECTIVES)
    for module, title in _MODULES.items():
        of_module = [row for row in rows if row.module == module]
        lines += ["", f"## {title} (`ngx_{module}_module`)\n", *_table(of_module)]
    lines += ["", "## Kubernetes\n", "| Field | Description |", "|---|---|"]
    lines += [f"| `{field}` | {meaning} |" for field, meaning in DEPLOYMENT_MEANINGS.items()]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Directive]) -> Iterator[str]:
    yield "| nginx | Field | Context | Value | Default | Description |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        where = ", ".join(map(str, row.contexts))
        field = f"`{row.field}`" if not row.part_of else "in `sslCertificate`"
        replaced = (
            " Replaces the inherited list." if row.inheritance is Inheritance.LIST and not row.part_of else ""
        )
        ours = " Not in nginx." if row.is_ours else ""
        cells = (f"`{row.name}`", field, where, _escaped(row.type.syntax), _default(row.default))
        yield f"| {' | '.join(cells)} | {_escaped(row.meaning)}{replaced}{ours} |"


def _listen_table() -> Iterator[str]:
    yield "| Parameter | Field | Default | Description |"
    yield "|---|---|---|---|"
    for row in LISTEN_PARAMETERS:
        implied = " Implies `bind`." if row.own_socket else ""
        yield f"| `{row.name}` | `{row.field}` | {_default(row.default)} | {_escaped(row.meaning)}{implied} |"


def _default(value: Raw) -> str:
    """A default for a cell of a table; ``-`` if there is none."""
    shown = format_default(value)
    return f"`{shown}`" if shown else "-"


def _escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render_page())
