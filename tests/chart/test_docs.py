# SPDX-License-Identifier: Apache-2.0
"""The documentation pages: links have a target, manifests are valid, commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy.cli import _parser as proxy_arguments
from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.cli import argument_parser as operator_arguments
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.helm import ROOT, Helm

DOCS: Final = ROOT / "docs"
CHANGELOG: Final = ROOT / "CHANGELOG.md"
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "tests/README.md",
    CHANGELOG,
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "charts").rglob("*.md")),
]
TARGETS: Final = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LEAST: Final[dict[str, Any]] = {
    "apiVersion": "mailproxy.dev/v1alpha1",
    "kind": "MailProxy",
    "metadata": {"name": "edge"},
    "spec": {
        "mail": {"authHttp": "http://auth/", "sslCertificate": [{"secretName": "mail-tls"}]},
        "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
    },
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(page: Path) -> str:
    return re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text())


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub generates from headings."""
    heads = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_index_lists_every_page() -> None:
    index = DOCS / "README.md"
    named = set(re.findall(r"\]\(([^)#]+)", index.read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}
    assert pages - named == {index.name}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_has_a_target(page: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in _anchors(found)):
            lost.append(target)
    assert lost == []


def _blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for indent, text in re.findall(rf"(?ms)^( *)```{language}\n(.+?)^ *```", page.read_text()):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            yield pytest.param("\n".join(lines), id=f"{_name(page)}:{lines[0][:30]}")


def _resources(text: str) -> Iterator[dict[str, Any]]:
    """The MailProxy resources of a YAML block, completed if the block shows only a part."""
    for found in yaml.safe_load_all(text):
        if "apiVersion" in found:
            yield from [found] if found["kind"] == "MailProxy" else []
        elif "proxies" in found:
            for proxy in found["proxies"].values():
                yield {**LEAST, "spec": proxy["spec"]}
        elif "spec" in found:
            part = found["spec"]
            mail = {**LEAST["spec"]["mail"], **part.get("mail", {})}
            yield {**LEAST, "spec": {**LEAST["spec"], **part, "mail": mail}}
        elif found.keys() <= {"autoscaling", "service", "drain", "sysctls"}:
            yield {**LEAST, "spec": {**LEAST["spec"], **found}}


@pytest.mark.parametrize("text", list(_blocks("yaml")))
def test_operator_renders_every_manifest_of_the_pages(text: str) -> None:
    for body in _resources(text):
        resource = Resource.read(read_resource(yaml.safe_dump(body), "page"))
        assert render(planned(resource, Platform()))


def _commands() -> Iterator[tuple[str, list[str]]]:
    for block in _blocks("sh"):
        [text] = block.values
        joined = re.sub(r"(?ms)<<'EOF'.+?^EOF", "", re.sub(r"\\\n", " ", str(text)))
        for line in joined.splitlines():
            yield from ((str(block.id), words) for words in _simple(line) if words)


def _simple(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, without redirections."""
    tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
    tokens.whitespace_split = True
    command: list[str] = []
    for token in tokens:
        if set(token) <= set("|&;()<>"):
            if token[0] in "<>" and command and command[-1].isdecimal():
                command.pop()  # the descriptor that is redirected, as in 2>&1
            yield command
            command = []
        else:
            command.append(token)
    yield command


def _commands_of(program: str) -> list[Any]:
    return [
        pytest.param(words[1:], id=f"{page} {' '.join(words[1:4])}")
        for page, words in _commands()
        if words[0].rpartition("/")[2] == program
    ]


@pytest.mark.parametrize("words", _commands_of("make"))
def test_every_make_target_exists(words: list[str]) -> None:
    assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param(name, *one.values, id=f"{name} {one.id}")
        for name in ("mailproxy", "mailproxy-operator")
        for one in _commands_of(name)
    ],
)
def test_every_command_of_ours_parses(program: str, words: list[str]) -> None:
    parser = proxy_arguments() if program == "mailproxy" else operator_arguments()
    assert parser.parse_args(words)


@pytest.mark.parametrize("words", _commands_of("helm"))
def test_every_helm_option_exists(helm: Helm, words: list[str]) -> None:
    known = helm.check_output(words[0], "--help")
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert {option for option in options if not re.search(rf"(^|[\s,]){option}\b", known)} == set()
