# SPDX-License-Identifier: Apache-2.0
"""Problems are collected and raised together."""

from __future__ import annotations

import pytest

from mailproxy_config.errors import ConfigError, Problem, Problems


def test_message_has_one_line_per_problem() -> None:
    error = ConfigError([Problem("spec.workers", "is wrong"), Problem("", "and so is this")])
    assert str(error) == "spec.workers: is wrong\nand so is this"


def test_problems_are_raised_in_order_without_duplicates() -> None:
    problems = Problems()
    for path in ("b", "a", "b"):
        problems.add(path, "is wrong")
    with pytest.raises(ConfigError) as raised:
        problems.raise_if_any()
    assert [problem.path for problem in raised.value.problems] == ["b", "a"]


def test_notices_alone_raise_nothing() -> None:
    problems = Problems()
    problems.notice("spec.mail.proxy", "has no effect")
    problems.raise_if_any()
    assert problems.notices == [Problem("spec.mail.proxy", "has no effect")]
    assert (len(problems), list(problems)) == (0, [])
