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
from support.parity.certificates import make_certificates
from support.parity.compared_programs import find_nginx
from support.parity.comparison import Outcome
from support.parity.dialogue import Dialogue
from support.parity.differences import CLOSE_NOTIFY, DIFFERENCES, RESET_IS_EOF
from support.parity.kit import Kit
from support.parity.remarks import (
    IN_EVERY_CONFIG,
    LISTEN_PARAMETERS,
    REMARKS,
    SAME,
    SERVICE_EXPECTATIONS,
    UNSUPPORTED,
    Remark,
)
from support.parity.results import Results

PAGE: Final = Path(__file__).parents[3] / "docs" / "conformance.md"
_VERSION_SECTION: Final = "## With "
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


class PageError(Exception):
    """A difference is not declared, or no test shows a statement; the page is not written."""


def page(results: Results) -> str:
    """Return the text of the page.

    Raises:
        NotConforming: A dialogue shows a difference that is not declared, or no test shows a statement.
    """
    results.play(DIALOGUES)
    wrong = [str(dialogue) for dialogue in DIALOGUES if not results.comparisons[dialogue].is_accepted]
    if wrong:
        raise PageError(f"{len(wrong)} dialogues differ: {wrong[:5]}")
    parts = (
        _introduction(),
        _area_rows(),
        _version_figures(results),
        _differences(),
        _services(),
        _directives(),
        _unsupported(),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def version_independent(text: str) -> str:
    """Return a page without the section that depends on nginx's version."""
    before, _, after = text.partition(_VERSION_SECTION)
    return before + after.partition("\n## ")[2]


def _introduction() -> Iterator[str]:
    refused = (
        len(list(refusals.generated()))
        + len(refusals.TLS)
        + len(refusals.WHOLE_FILES)
        + len(refusals.LISTENERS)
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
        "is a fault and fails the tests. `NGINX=/path` selects another nginx that has the mail module.",
        "",
        f"{refused} configurations are rejected by both, because of the same directive or line, and {accepted} are accepted by both.",
        "",
        "Left out of the comparison: the minor version of HTTP in the request line, the random part of challenges,",
        "addresses and ports. Where nginx 1.31 differs from an older version, the proxy behaves as 1.31.",
        "",
    )


def _area_rows() -> Iterator[str]:
    yield from ("## Behaviour", "", "| Area | Dialogues | Declared differences |", "|---|---|---|")
    for area in dict.fromkeys(dialogue.area for dialogue in DIALOGUES):
        here = [dialogue for dialogue in DIALOGUES if dialogue.area == area]
        yield f"| {area} | {len(here)} | {_count_differences(here)} |"
    yield ""
    yield f"Besides these, `{RESET_IS_EOF}` and `{CLOSE_NOTIFY}` below may occur wherever a connection ends."
    yield ""


def _count_differences(dialogues: Iterable[Dialogue]) -> str:
    names = Counter(item.declared_difference for item in dialogues if item.declared_difference)
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items())) or "none"


def _version_figures(results: Results) -> Iterator[str]:
    newer = sum(results.comparisons[item].outcome is Outcome.NEWER for item in DIALOGUES)
    version = results.kit.nginx.version
    declared = [
        item
        for item in DIALOGUES
        if item.declared_difference and not _nginx_behaves_alike(item.declared_difference, version)
    ]
    yield f"{_VERSION_SECTION}{results.kit.nginx.name}"
    yield from ("", "| Dialogues | |", "|---|---|")
    yield f"| the same | {len(DIALOGUES) - len(declared) - newer} |"
    yield f"| differ as declared | {len(declared)} |"
    yield f"| this nginx is too old: compared with the known behaviour of 1.31 | {newer} |"
    yield ""


def _nginx_behaves_alike(difference: str, version: tuple[int, ...]) -> bool:
    same_since = DIFFERENCES[difference].same_since
    return bool(same_since) and version >= same_since


def _differences() -> Iterator[str]:
    yield from (
        "## Declared differences",
        "",
        "| Name | nginx | The proxy | Why | |",
        "|---|---|---|---|---|",
    )
    for item in DIFFERENCES.values():
        kind = _KINDS[item.kind]
        if item.same_since:
            kind += f" (from {'.'.join(map(str, item.same_since))} on)"
        yield f"| {item.name} | {item.nginx} | {item.proxy} | {item.reason} | {kind} |"
    yield ""


def _services() -> Iterator[str]:
    yield from ("## What authentication services rely on", "", "| Expectation | Dialogues |", "|---|---|")
    known = {dialogue.name for dialogue in DIALOGUES}
    for expectation, names in SERVICE_EXPECTATIONS.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise PageError(f"no dialogue is called {missing[0]}")
        yield f"| {expectation} | {'; '.join(names)} |"
    systems = Counter(item.area.removeprefix(services.AREA) for item in services.DIALOGUES)
    evidence = ", ".join(f"{system} ({count})" for system, count in systems.items())
    yield from (
        "",
        f"Dialogues with responses of real authentication services, by service: {evidence}.",
        "",
    )


def _directives() -> Iterator[str]:
    rows = (*MAIN_DIRECTIVES, *SERVER_DIRECTIVES, *LEVEL_DIRECTIVES, *FOLDED_DIRECTIVES)
    named = dict.fromkeys([*_BLOCKS, *((row.name, row.module) for row in rows if not row.is_ours)])
    refused = Counter([name for name, _, _ in refusals.generated()])
    refused += Counter(name for name, _, _ in refusals.TLS) + Counter(
        name for name, _ in refusals.WHOLE_FILES
    )
    refused["listen"] += len(refusals.LISTENERS)
    yield from ("## Directives", "")
    yield from (
        "*Dialogues*: number of dialogues with servers that set the directive. *Rejections*: number of configurations that both reject because of it.",
        "",
    )
    for module, title in _MODULES.items():
        yield from (
            f"### {title}",
            "",
            "| Directive | Dialogues | Declared differences | Rejections | | |",
            "|---|---|---|---|---|---|",
        )
        for name in [name for name, row_module in named if row_module == module]:
            yield _directive(name, refused[name])
        yield ""
    yield from _parameters()


def _directive(name: str, refused: int) -> str:
    played = DIALOGUES if name in IN_EVERY_CONFIG else list(_played_with(name, DIALOGUES))
    remark = REMARKS.get(name, Remark(SAME, "", ()))
    _check_tests_exist(name, remark)
    if not played and name not in REMARKS:
        raise PageError(f"no test shows what {name} does")
    evidence = ", ".join(f"`{item}`" for item in remark.evidence)
    text = f"{remark.text} ({evidence})" if evidence else ""
    differing = "as above" if name in IN_EVERY_CONFIG else _count_differences(played)
    return f"| `{name}` | {len(played) or '-'} | {differing} | {refused} | {remark.comparison} | {text} |"


def _check_tests_exist(name: str, remark: Remark) -> None:
    """Check that the tests in a remark exist."""
    tests = [item for item in remark.evidence if item not in DIFFERENCES]
    missing = [item for item in tests if pages.missing(f"`{item}`")]
    if missing:
        raise PageError(f"{name}: there is no {missing[0]}")


def _parameters() -> Iterator[str]:
    yield from ("### Parameters of listen", "", "| Parameter | Dialogues | Rejections |", "|---|---|---|")
    for name in LISTEN_PARAMETERS:
        words = [block.name for block in BLOCKS if name in block.listen.replace("=", " ").split()]
        count = sum(item.block in words for item in DIALOGUES)
        refused = sum(name in text.replace("=", " ").split() for text in refusals.LISTENERS)
        if not count:
            raise PageError(f"no test shows what {name} does")
        yield f"| `{name}` | {count} | {refused} |"
    yield ""


def _played_with(directive: str, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
    """Return the dialogues on server blocks that set a directive."""
    blocks = {block.name for block in BLOCKS if directive in block.directives.replace(";", " ").split()}
    return (dialogue for dialogue in dialogues if dialogue.block in blocks)


def _unsupported() -> Iterator[str]:
    yield from ("## Not supported", "", "| What | Why | Message |", "|---|---|---|")
    for what, why, text in UNSUPPORTED:
        yield f"| {what} | {why} | {_messages(what, text)} |"


def _messages(what: str, text: str) -> str:
    """Return the proxy's messages for an ``nginx.conf``."""
    try:
        messages = parse_nginx(text, source="/nginx.conf").notices
    except ConfigError as error:
        messages = error.problems
    if not messages:
        raise PageError(f"there is no message about {what}")
    return "; ".join(dict.fromkeys(f"`{message}`" for message in messages)).replace(
        "/nginx.conf", "nginx.conf"
    )


def main() -> int:
    """Generate the page and write it."""
    nginx = find_nginx()
    if isinstance(nginx, str):
        sys.stderr.write(f"{nginx}\n")
        return 1
    with tempfile.TemporaryDirectory() as folder, Kit(nginx, BLOCKS, make_certificates(Path(folder))) as kit:
        PAGE.write_text(page(Results(kit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
