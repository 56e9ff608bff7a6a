# SPDX-License-Identifier: Apache-2.0
"""The conformance page says what the tests show."""

from __future__ import annotations

import pytest

from support.parity.conformance import PAGE, lasting, page
from support.parity.ledger import Ledger

pytestmark = pytest.mark.interop


def test_the_page_is_fresh(ledger: Ledger) -> None:
    """Exactly with the nginx that it names; with another one in all that does not depend on the version."""
    kept, made = PAGE.read_text(), page(ledger)
    if f"## With {ledger.kit.nginx.name}\n" in kept:
        assert made == kept
    else:
        assert lasting(made) == lasting(kept)


def test_only_figures_depend_on_the_version() -> None:
    kept = PAGE.read_text()
    assert len(kept.splitlines()) - len(lasting(kept).splitlines()) < 10
    assert "## Directives" in lasting(kept)
