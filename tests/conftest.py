# SPDX-License-Identifier: Apache-2.0
"""For all tests: distribution among processes, number of generated examples, needed programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.fuzz import load_profile
from support.needs import Needs, require
from support.parity.summary import SUMMARY

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

load_profile()


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return the path of a program that a test starts, or skip the test and name its Debian package."""
    return require


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the generated tests, which ``make fuzz`` runs."""
    for item in items:
        if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
            item.add_marker("generated")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Distribute tests among processes by module, so that each module starts its servers once."""
    from support.xdist_scheduling import Sharing  # the library may be missing

    return Sharing(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the results of the comparison with nginx from another process."""
    lines = getattr(node, "workeroutput", {}).get("parity")
    if lines:
        node.config.stash[SUMMARY] = lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many dialogues were compared with nginx."""
    lines = config.stash.get(SUMMARY, None)
    if lines:
        terminalreporter.section("parity with nginx")
        for line in lines:
            terminalreporter.write_line(line)
