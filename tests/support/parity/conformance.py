# SPDX-License-Identifier: Apache-2.0
"""The conformance page, generated from the comparisons: ``python -m support.parity.conformance``.

The page is ``docs/conformance.md``; a test generates it again and compares.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mailproxy_config.directives import (
    FOLDED_DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
)
from mailproxy_config.errors import ConfigError
from mailproxy_config.nginx.convert import parse_nginx
from support import pages
from support.parity import refusals
from support.parity.cases import BLOCKS, DIALOGUES, services
from support.parity.certificates import make
from support.parity.compared_programs import find_nginx
from support.parity.comparison import Outcome
from support.parity.dialogue import Dialogue
from support.parity.differences import DIFFERENCES, GOODBYE, RESET_IS_EOF
from support.parity.kit import Kit
from support.parity.remarks import ANYWHERE, EXPECTED, LISTENED, REMARKS, SAME, UNSUPPORTED, Remark
from support.parity.results import Ledger

PAGE: Final = Path(__file__).parents[3] / "docs" / "conformance.md"
_FIGURES: Final = "## With "
"""The heading prefix of the only section that depends on nginx's version."""

_KINDS: Final = {
    "fixed": "better: a fault of nginx is not copied",
    "stricter": "better: hostile input is refused",
    "better": "better",
    "chosen": "a choice",
    "newer": "as a newer nginx",
    "extended": "more than nginx",
}
_MODULES: Final = {
    "core": "Around the mail block",
    "mail_core": "ngx_mail_core_module",
    "mail_auth_http": "ngx_mail_auth_http_module",
    "mail_proxy": "ngx_mail_proxy_module",
    "mail_realip": "ngx_mail_realip_module",
    "mail_ssl": "ngx_mail_ssl_module",
    "mail_imap": "ngx_mail_imap_module",
    "mail_pop3": "ngx_mail_pop3_module",
    "mail_smtp": "ngx_mail_smtp_module",
}
_BLOCKS: Final = (
    ("events", "core"),
    ("worker_shutdown_timeout", "core"),
    ("mail", "mail_core"),
    ("server", "mail_core"),
)
"""Directives that have no row in the table of directives."""


class NotConforming(Exception):
    """A difference is not declared, or nothing shows a statement; the page cannot be written."""


def page(ledger: Ledger) -> str:
    """Return the text of the page.

    Raises:
        NotConforming: A dialogue shows a difference that is not declared, or nothing shows a statement.
    """
    ledger.play(DIALOGUES)
    wrong = [str(dialogue) for dialogue in DIALOGUES if not ledger.verdicts[dialogue].is_fine]
    if wrong:
        raise NotConforming(f"{len(wrong)} dialogues differ: {wrong[:5]}")
    parts = (_head(), _areas(), _figures(ledger), _differences(), _services(), _directives(), _unsupported())
    return "\n".join(line for part in parts for line in part) + "\n"


def lasting(text: str) -> str:
    """Return a page without the section that depends on nginx's version."""
    before, _, after = text.partition(_FIGURES)
    return before + after.partition("\n## ")[2]


def _head() -> Iterator[str]:
    refused = (
        len(list(refusals.generated())) + len(refusals.TLS) + len(refusals.WHOLE) + len(refusals.LISTENERS)
    )
    accepted = len(refusals.ACCEPTED) + len(list(refusals.repeated()))
    yield from (
        "# Conformance with nginx",
        "",
        "<!-- Made by `python -m support.parity.conformance` from what the tests show. Do not edit. -->",
        "",
        f"{len(DIALOGUES)} dialogues are played to nginx and to the proxy, with one `nginx.conf`, one authentication service and",
        "one upstream. Compared are the bytes to the client, to the service and to the upstream, the DNS queries, the",
        "TLS handshakes, and how connections end. More dialogues are generated. A difference that is not declared below",
        "is a fault and fails the tests. `NGINX=/path` compares with another nginx that has the mail module.",
        "",
        f"{refused} configurations are refused by both, for the same directive or line, and {accepted} are accepted by both.",
        "",
        "Left out of the comparison: the minor version of HTTP in the request line, the random part of challenges,",
        "addresses and ports. Where nginx 1.31 differs from an older version, the proxy behaves as 1.31.",
        "",
    )


def _areas() -> Iterator[str]:
    yield from ("## Behaviour", "", "| Area | Dialogues | Declared differences |", "|---|---|---|")
    for area in dict.fromkeys(dialogue.area for dialogue in DIALOGUES):
        here = [dialogue for dialogue in DIALOGUES if dialogue.area == area]
        yield f"| {area} | {len(here)} | {_differing(here)} |"
    yield ""
    yield f"Besides these, `{RESET_IS_EOF}` and `{GOODBYE}` below may be seen wherever a connection ends."
    yield ""


def _differing(dialogues: Iterable[Dialogue]) -> str:
    names = Counter(one.differs for one in dialogues if one.differs)
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items())) or "none"


def _figures(ledger: Ledger) -> Iterator[str]:
    newer = sum(ledger.verdicts[one].outcome is Outcome.NEWER for one in DIALOGUES)
    over = ledger.kit.nginx.version
    meant = [one for one in DIALOGUES if one.differs and not _is_over(one.differs, over)]
    yield f"{_FIGURES}{ledger.kit.nginx.name}"
    yield from ("", "| Dialogues | |", "|---|---|")
    yield f"| the same | {len(DIALOGUES) - len(meant) - newer} |"
    yield f"| differ as declared | {len(meant)} |"
    yield f"| about what this nginx is too old for: compared with what 1.31 is known to do | {newer} |"
    yield ""


def _is_over(difference: str, version: tuple[int, ...]) -> bool:
    until = DIFFERENCES[difference].until
    return bool(until) and version >= until


def _differences() -> Iterator[str]:
    yield from ("## Meant differences", "", "| Name | nginx | The proxy | Why | |", "|---|---|---|---|---|")
    for one in DIFFERENCES.values():
        kind = _KINDS[one.kind]
        if one.until:
            kind += f" (from {'.'.join(map(str, one.until))} on)"
        yield f"| {one.name} | {one.nginx} | {one.proxy} | {one.reason} | {kind} |"
    yield ""


def _services() -> Iterator[str]:
    yield from ("## What authentication services expect", "", "| Expectation | Dialogues |", "|---|---|")
    known = {dialogue.name for dialogue in DIALOGUES}
    for expectation, names in EXPECTED.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise NotConforming(f"no dialogue is called {missing[0]}")
        yield f"| {expectation} | {'; '.join(names)} |"
    systems = Counter(one.area.removeprefix(services.AREA) for one in services.DIALOGUES)
    shown = ", ".join(f"{system} ({count})" for system, count in systems.items())
    yield from ("", f"Answers in the forms of services that are in use, by number of dialogues: {shown}.", "")


def _directives() -> Iterator[str]:
    rows = (*MAIN_DIRECTIVES, *SERVER_DIRECTIVES, *LEVEL_DIRECTIVES, *FOLDED_DIRECTIVES)
    named = dict.fromkeys([*_BLOCKS, *((row.name, row.module) for row in rows if not row.is_ours)])
    refused = Counter([name for name, _, _ in refusals.generated()])
    refused += Counter(name for name, _, _ in refusals.TLS) + Counter(name for name, _ in refusals.WHOLE)
    refused["listen"] += len(refusals.LISTENERS)
    yield from ("## Directives", "")
    yield from (
        "*Dialogues*: with servers that set it. *Refusals*: configurations in which both blame it.",
        "",
    )
    for module, title in _MODULES.items():
        yield from (
            f"### {title}",
            "",
            "| Directive | Dialogues | Declared differences | Refusals | | |",
            "|---|---|---|---|---|---|",
        )
        for name in [name for name, home in named if home == module]:
            yield _directive(name, refused[name])
        yield ""
    yield from _parameters()


def _directive(name: str, refused: int) -> str:
    played = DIALOGUES if name in ANYWHERE else list(_played_with(name, DIALOGUES))
    remark = REMARKS.get(name, Remark(SAME, "", ()))
    _see_to(name, remark)
    if not played and name not in REMARKS:
        raise NotConforming(f"nothing shows what {name} does")
    shown = ", ".join(f"`{one}`" for one in remark.shown)
    text = f"{remark.text} ({shown})" if shown else ""
    differing = "as above" if name in ANYWHERE else _differing(played)
    return f"| `{name}` | {len(played) or '-'} | {differing} | {refused} | {remark.verdict} | {text} |"


def _see_to(name: str, remark: Remark) -> None:
    """Check that the tests that a remark names exist."""
    tests = [one for one in remark.shown if one not in DIFFERENCES]
    missing = [one for one in tests if pages.missing(f"`{one}`")]
    if missing:
        raise NotConforming(f"{name}: there is no {missing[0]}")


def _parameters() -> Iterator[str]:
    yield from ("### Parameters of listen", "", "| Parameter | Dialogues | Refusals |", "|---|---|---|")
    for name in LISTENED:
        words = [block.name for block in BLOCKS if name in block.listen.replace("=", " ").split()]
        count = sum(one.block in words for one in DIALOGUES)
        refused = sum(name in text.replace("=", " ").split() for text in refusals.LISTENERS)
        if not count:
            raise NotConforming(f"nothing shows what {name} does")
        yield f"| `{name}` | {count} | {refused} |"
    yield ""


def _played_with(directive: str, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
    """Return the dialogues on server blocks that set a directive."""
    blocks = {block.name for block in BLOCKS if directive in block.directives.replace(";", " ").split()}
    return (dialogue for dialogue in dialogues if dialogue.block in blocks)


def _unsupported() -> Iterator[str]:
    yield from ("## Not supported", "", "| What | Why | What is told |", "|---|---|---|")
    for what, why, text in UNSUPPORTED:
        yield f"| {what} | {why} | {_told(what, text)} |"


def _told(what: str, text: str) -> str:
    """Return the proxy's messages for an ``nginx.conf``."""
    try:
        told = parse_nginx(text, source="/nginx.conf").notices
    except ConfigError as error:
        told = error.problems
    if not told:
        raise NotConforming(f"nothing is told of {what}")
    return "; ".join(dict.fromkeys(f"`{each}`" for each in told)).replace("/nginx.conf", "nginx.conf")


def main() -> int:
    """Generate the page and write it."""
    nginx = find_nginx()
    if isinstance(nginx, str):
        sys.stderr.write(f"{nginx}\n")
        return 1
    with tempfile.TemporaryDirectory() as folder, Kit(nginx, BLOCKS, make(Path(folder))) as kit:
        PAGE.write_text(page(Ledger(kit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
