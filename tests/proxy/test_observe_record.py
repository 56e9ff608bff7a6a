# SPDX-License-Identifier: Apache-2.0
"""The session's record."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mailproxy.telemetry.log_format import SessionRecord


def test_a_record_needs_nothing_to_begin_with() -> None:
    record = SessionRecord()
    assert (record.user, record.method, record.result, record.reason) == (b"", None, None, None)


def test_a_record_has_room_for_nothing_else() -> None:
    with pytest.raises(AttributeError):
        SessionRecord().password = b"x"  # type: ignore[attr-defined]


def test_no_field_is_for_a_secret() -> None:
    secret = {"password", "secret", "credentials", "salt", "digest", "token"}
    assert not secret & {field.name for field in fields(SessionRecord)}
