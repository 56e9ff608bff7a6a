# SPDX-License-Identifier: Apache-2.0
"""The meaning of the API server's errors, in addition to the tests of requests."""

from __future__ import annotations

import pytest

from mailproxy_operator.api.api_errors import ApiResponse, error_from, is_port_drift, warnings
from mailproxy_operator.api.kinds import CONFIG_MAP, DEPLOYMENT
from mailproxy_operator.errors import KindMissing, NotFoundOrConflict, TerminalError, TransientError

STATUS = {"kind": "Status"}


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (ApiResponse(404), KindMissing),
        (ApiResponse(404, {**STATUS, "message": 'namespaces "x" not found'}), NotFoundOrConflict),
        (ApiResponse(400, STATUS), TerminalError),
        (ApiResponse(500, {**STATUS, "message": "expected string, got &value"}), TerminalError),
        (ApiResponse(504), TransientError),
    ],
)
def test_error_from_response(response: ApiResponse, error: type[Exception]) -> None:
    assert type(error_from(response, DEPLOYMENT, "Deployment edge")) is error


def test_message_length_is_limited() -> None:
    assert len(ApiResponse(500, {"message": "x" * 10_000}).message) == 2000
    assert str(error_from(ApiResponse(503), CONFIG_MAP, "ConfigMap a")) == "ConfigMap a: HTTP 503"


@pytest.mark.parametrize(
    ("status", "cause", "is_drift"),
    [
        (422, {"reason": "FieldValueDuplicate", "field": "spec.ports[1].name"}, True),
        (422, {"reason": "FieldValueDuplicate", "field": "spec.template.spec.volumes[1].name"}, False),
        (422, {"reason": "FieldValueInvalid", "field": "spec.ports[1].name"}, False),
        (500, {"reason": "FieldValueDuplicate", "field": "spec.ports[1].name"}, False),
    ],
)
def test_port_drift(status: int, cause: dict[str, str], is_drift: bool) -> None:
    assert is_port_drift(ApiResponse(status, {"details": {"causes": [cause]}})) is is_drift


@pytest.mark.parametrize(
    ("headers", "texts"),
    [
        (['299 - "unknown field \\"spec.x\\""'], ('unknown field "spec.x"',)),
        (["nonsense"], ()),
        ([], ()),
    ],
)
def test_warnings(headers: list[str], texts: tuple[str, ...]) -> None:
    assert warnings(headers) == texts
