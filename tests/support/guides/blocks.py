# SPDX-License-Identifier: Apache-2.0
"""The code blocks of a guide, by the names that HTML comments before them give.

``<!-- block: NAME -->`` names the next block, and a test runs or validates it.
``<!-- not run: REASON -->`` marks a block that no test can run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from support.servers.proxy import ROOT

Object = dict[str, Any]

GUIDES: Final = (
    "migrating-from-nginx.md",
    "dovecot.md",
    "postfix.md",
    "mailu.md",
    "exposing.md",
    "cert-manager.md",
    "gitops.md",
)
"""The pages whose blocks are marked for tests."""

_FENCE: Final = re.compile(r"(?ms)^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$")
_MARK: Final = re.compile(r"<!-- (block|not run): (.+?) -->\n\s*\Z")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        name: Its name; empty if the block is not marked with one.
        not_run: Why no test runs it; empty if a test does.
        language: The language after the fence.
        text: Its lines, without the indentation of the fence.
    """

    name: str
    not_run: str
    language: str
    text: str


class Page:
    """A page of ``docs/``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / "docs" / name).read_text("utf-8")
        self.blocks = list(_blocks(self.text))

    def block(self, name: str) -> str:
        """Return the text of the only block with this name."""
        [found] = [block.text for block in self.blocks if block.name == name]
        return found

    def objects(self, name: str) -> list[Object]:
        """Return the documents of a YAML block."""
        return [one for one in yaml.safe_load_all(self.block(name)) if one]

    def object(self, name: str) -> Object:
        """Return the only document of a YAML block."""
        [found] = self.objects(name)
        return found

    def rows(self, heading: str) -> list[list[str]]:
        """Return the cells of the rows of the first table below a heading, without the head."""
        [section] = re.findall(rf"(?ms)^#+ {re.escape(heading)}$(.+?)(?=^#+ |\Z)", self.text)
        lines = [line for line in section.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def _blocks(text: str) -> Iterator[Block]:
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text[: found.start()] + " ")
        kind, value = mark.groups() if mark else ("", "")
        lines = [line.removeprefix(found["indent"]) for line in found["text"].splitlines()]
        yield Block(
            name=value if kind == "block" else "",
            not_run=value if kind == "not run" else "",
            language=found["language"],
            text="\n".join(lines) + "\n",
        )


def local_manifest(body: Object, ports: Mapping[int, int], auth: str, certificate: Object) -> Object:
    """Return a manifest of a page as this machine can run it.

    Args:
        body: The MailProxy of the page.
        ports: The port on 127.0.0.1 for each port of the page.
        auth: The URL of the authentication service.
        certificate: ``certificateFile`` and ``keyFile`` in place of each Secret.
    """
    made = copy.deepcopy(body)
    spec = made["spec"]
    spec.setdefault("errorLog", {"level": "info"})
    spec["drain"] = {"delay": "0s", "timeout": "5s"}
    spec["mail"]["authHttp"] = auth
    for level in [spec["mail"], *spec["servers"]]:
        if "sslCertificate" in level:
            level["sslCertificate"] = [certificate]
    for server in spec["servers"]:
        for listen in server["listen"]:
            listen.pop("hostPort", None)
            listen.update(address="127.0.0.1", port=ports[listen["port"]])
    return made
