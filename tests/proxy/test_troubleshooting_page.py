# SPDX-License-Identifier: Apache-2.0
"""The commands and events of docs/troubleshooting.md match the log."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from mailproxy.enums import LoginResult, Method
from mailproxy.telemetry.log_format import SessionRecord, json_event, json_session, text_event, text_session

PAGE: Final = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
STAMP: Final = "2026-11-23T04:16:47.500Z"
GOOD: Final = SessionRecord("s-1", method=Method.PLAIN, result=LoginResult.SUCCESS)
BAD: Final = SessionRecord("s-2", method=Method.PLAIN, result=LoginResult.UPSTREAM_DENIED, stage="login")
NONE: Final = SessionRecord("s-3")


@pytest.mark.parametrize("number", [0, 1])
def test_documented_grep_finds_failed_sessions(number: int) -> None:
    line, event = ((json_session, json_event), (text_session, text_event))[number]
    lines = [line(record, STAMP) for record in (GOOD, BAD, NONE)]
    lines.append(event("error", "other", STAMP, {"a": "session"}))
    command = re.findall(r"\| (grep .*grep -v .*)$", PAGE, re.MULTILINE)[number]
    found = subprocess.run(
        ["sh", "-c", command], input="".join(lines), capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines(keepends=True) == lines[1:3]


def test_every_documented_event_exists() -> None:
    folder = Path(__file__).parents[2] / "proxy" / "mailproxy"
    sources = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    table = PAGE[PAGE.index("| Event | Level |") : PAGE.index("`errorLog.level` chooses")].strip()
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 7
    assert [name for name in named if f'"{name}"' not in sources] == []
