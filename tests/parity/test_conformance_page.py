# SPDX-License-Identifier: Apache-2.0
"""The conformance page matches the results of the tests."""

from __future__ import annotations

import pytest

from support.parity.conformance import PAGE, lasting, page
from support.parity.results import Ledger

pytestmark = pytest.mark.interop


def test_the_page_is_fresh(ledger: Ledger) -> None:
    """With the nginx that the page names, all of it matches; with another, all that is version-independent."""
    kept, made = PAGE.read_text(), page(ledger)
    if f"## With {ledger.kit.nginx.name}\n" in kept:
        assert made == kept
    else:
        assert lasting(made) == lasting(kept)


def test_only_figures_depend_on_the_version() -> None:
    kept = PAGE.read_text()
    assert len(kept.splitlines()) - len(lasting(kept).splitlines()) < 10
    assert "## Directives" in lasting(kept)
