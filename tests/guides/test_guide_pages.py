# SPDX-License-Identifier: Apache-2.0
"""All guides: every block has a test or the reason why it has none; every object is valid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.guides.blocks import GUIDES, Block, Object, Page
from support.guides.third_party import is_known, third_party_errors
from support.helm_schemas import VERSIONS, schema_errors

TESTS: Final = Path(__file__).parents[1]
PAGES: Final = [Page(name) for name in GUIDES]


def _blocks() -> Iterator[Any]:
    for page in PAGES:
        for block in page.blocks:
            yield pytest.param(page, block, id=f"{page.name}:{block.name or block.text[:30]}")


def _objects() -> Iterator[Any]:
    for page in PAGES:
        for block in page.blocks:
            if block.language == "yaml":
                for body in yaml.safe_load_all(block.text):
                    if "apiVersion" in body:
                        name = f"{page.name}:{body['kind']}/{body['metadata']['name']}"
                        yield pytest.param(body, id=name)


@pytest.mark.parametrize(("page", "block"), list(_blocks()))
def test_every_block_has_a_test_or_a_reason(page: Page, block: Block) -> None:
    assert bool(block.name) != bool(block.not_run), "a block needs <!-- block: NAME --> before it"
    if block.name and block.language != "yaml" and not _is_a_log(block):
        name = page.name.removesuffix(".md").replace("-", "_")
        tests = "".join(path.read_text() for path in TESTS.glob(f"*/test_{name}_page.py"))
        assert f'"{block.name}"' in tests


def _is_a_log(block: Block) -> bool:
    """Tests look up the log of a version or of a service by a name that they compose."""
    return block.name.startswith("log ")


def test_names_of_blocks_are_unique() -> None:
    for page in PAGES:
        names = [block.name for block in page.blocks if block.name]
        assert len(names) == len(set(names)), page.name


@pytest.mark.parametrize("body", list(_objects()))
def test_every_object_is_valid(body: Object) -> None:
    if body["kind"] == "MailProxy":
        assert render(planned(Resource.read(read_resource(yaml.safe_dump(body), "page")), Platform()))
    elif is_known(body):
        assert third_party_errors(body) == []
    else:
        for version in (VERSIONS[0], VERSIONS[-1]):
            assert schema_errors(body, version) == []


def test_an_unknown_field_of_another_product_is_an_error() -> None:
    """Else the test above would prove nothing."""
    body = Page("exposing.md").objects("metallb")[0]
    body["spec"]["adresses"] = body["spec"].pop("addresses")
    assert len(third_party_errors(body)) == 2
