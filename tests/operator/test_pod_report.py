# SPDX-License-Identifier: Apache-2.0
"""Responses of pods to ``/config``, which may have any content."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import UpstreamTlsFailure
from mailproxy.errors import UpstreamTlsError
from mailproxy.telemetry.upstream_report import UpstreamReport, summarize
from mailproxy_operator.api.cluster import RunningConfig, UpstreamConfigError, UpstreamState
from mailproxy_operator.api.pod_report import MAX_SERVERS, read_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["upstreams", "tls", "config_errors", "state", "stage", "hash", "message", "imap"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def test_summary_of_the_proxy_is_read() -> None:
    """What the proxy writes is what the operator reads."""
    report, now = UpstreamReport(), 1_800_000_000.0
    report.failed("192.0.2.7:993", UpstreamTlsError(UpstreamTlsFailure.NAME, "set proxySslName"), now)
    state = report.state()
    assert state is not None
    body = {"hash": "h", "last_error": None, "upstreams": {"imap": summarize([state], now, now + 60)}}
    found = read_config(json.loads(json.dumps(body)))
    error = UpstreamConfigError(stage="tls", failure="name")
    wanted = UpstreamState(
        server="imap",
        state="failed",
        failure="name",
        certificate_expires=datetime(2027, 1, 15, 8, 1, tzinfo=UTC),
        errors=(error,),
    )
    assert found == RunningConfig("h", upstreams=(wanted,))
    [upstream] = found.upstreams
    assert (upstream.upstream, upstream.message) == ("192.0.2.7:993", "set proxySslName")
    assert upstream.errors[0].message == "set proxySslName"


def test_response_with_other_texts_is_the_same() -> None:
    """Otherwise each failed login would be a change of the status."""
    one, other = ({"message": text, "upstream": text, "state": "failed", "count": text} for text in "ab")
    read = [read_config({"hash": "h", "upstreams": {"imap": {"tls": tls}}}) for tls in (one, other)]
    assert read[0] == read[1]


@pytest.mark.parametrize("body", [None, [], "x", 1])
def test_response_that_is_no_object_is_none(body: object) -> None:
    assert read_config(body) is None


@given(JSON)
def test_any_json_is_read(body: Any) -> None:
    found = read_config(body)
    assert (found is None) == (not isinstance(body, dict))
    if found is not None:
        assert len(found.upstreams) <= MAX_SERVERS
        assert all(one.state in {"failed", "succeeded", "unknown"} for one in found.upstreams)


def test_texts_are_limited_and_printable() -> None:
    tls = {"message": "a\r\nb" * 1000, "state": "failed"}
    found = read_config({"upstreams": {"imap": {"tls": tls, "config_errors": [{}] * 99}}})
    assert found is not None
    [one] = found.upstreams
    assert (len(one.message), len(one.errors)) == (500, 4)
    assert one.message.isprintable()
