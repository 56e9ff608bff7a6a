# SPDX-License-Identifier: Apache-2.0
"""nginx and the proxy side by side, started once; the summary at the end reports their differences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.parity import grammar
from support.parity.cases import BLOCKS
from support.parity.certificates import make_certificates
from support.parity.compared_programs import Nginx, require_nginx
from support.parity.dialogue import Dialogue
from support.parity.kit import Kit
from support.parity.results import Results
from support.parity.summary import SUMMARY

_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session")
def nginx() -> Nginx:
    """The nginx to compare with; without it, these tests are skipped."""
    return require_nginx()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Certificate files, by the names that configurations and dialogues use."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def results(nginx: Nginx, certificates: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Results]:
    """Run nginx and the proxy, play all dialogues of this run at once, and return the results."""
    with Kit(nginx, (*BLOCKS, *grammar.BLOCKS), certificates) as kit:
        made = request.config.stash[_RESULTS] = Results(kit)
        made.play(_wanted(request.session.items))
        yield made


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for configurations."""
    return tmp_path_factory.mktemp("configurations")


def _wanted(items: list[pytest.Item]) -> Iterator[Dialogue]:
    for item in items:
        params = getattr(item, "callspec", None)
        found = params.params.get("dialogue") if params is not None else None
        if isinstance(found, Dialogue):
            yield found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the results; a process of several sends them to the one that prints the summary."""
    results = session.config.stash.get(_RESULTS, None)
    if results is None:
        return
    seen = ", ".join(f"{name} {count}" for name, count in sorted(results.differences.items()))
    lines = [results.summary, f"declared differences seen: {seen}"]
    output = getattr(session.config, "workeroutput", None)
    if output is None:
        session.config.stash[SUMMARY] = lines
    else:
        output["parity"] = lines
