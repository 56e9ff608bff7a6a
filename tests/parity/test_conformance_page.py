# SPDX-License-Identifier: Apache-2.0
"""The conformance page matches the results of the tests."""

from __future__ import annotations

import pytest

from support.parity.conformance import PAGE, page, version_independent
from support.parity.results import Results

pytestmark = pytest.mark.interop


def test_conformance_page_is_up_to_date(results: Results) -> None:
    """With the nginx that the page names, all of it matches; with another, all that is version-independent."""
    kept, made = PAGE.read_text(), page(results)
    if f"## With {results.kit.nginx.name}\n" in kept:
        assert made == kept
    else:
        assert version_independent(made) == version_independent(kept)


def test_only_one_section_depends_on_the_nginx_version() -> None:
    kept = PAGE.read_text()
    assert len(kept.splitlines()) - len(version_independent(kept).splitlines()) < 10
    assert "## Directives" in version_independent(kept)
