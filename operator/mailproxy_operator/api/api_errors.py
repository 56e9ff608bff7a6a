# SPDX-License-Identifier: Apache-2.0
"""Maps responses of the API server to errors of the operator, as pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mailproxy_operator.api.kinds import WORKLOADS, Kind
from mailproxy_operator.errors import (
    KindMissing,
    NotFoundOrConflict,
    OperatorError,
    TerminalError,
    TransientError,
)
from mailproxy_operator.reasons import Reason

_BAD_BODY = re.compile(
    r"failed to create typed patch object|field not declared in schema|duplicate entries for key|^expected "
)
_WARNING = re.compile(r'^\d{3} \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """An HTTP response of the API server.

    Attributes:
        body: The JSON body; empty when the body is not JSON.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_success(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300

    @property
    def message(self) -> str:
        """The message of the API server."""
        message = str(self.body.get("message") or f"HTTP {self.status}")[:2000]
        if self.status == 401:
            return (
                f"{message}: the API server does not accept the operator's credentials; they may have expired"
            )
        return message

    @property
    def is_about_object(self) -> bool:
        """Whether the response is about an object, and not about a path that does not exist."""
        return self.body.get("kind") == "Status"


def code_class(status: int) -> str:
    """Return the metric label of a status code: its class, or the code itself for some codes."""
    return str(status) if status in {409, 410, 422, 429} else f"{status // 100}xx"


def warnings(headers: list[str]) -> tuple[str, ...]:
    """Read ``Warning`` headers (RFC 7234 section 5.5) as the API server writes them."""
    found = (_WARNING.match(header) for header in headers)
    return tuple(re.sub(r"\\(.)", r"\1", one[1]) for one in found if one)


def is_port_drift(response: ApiResponse) -> bool:
    """Return whether two ports share a name: a user has edited the number of a port but not its name."""
    causes = (response.body.get("details") or {}).get("causes") or []
    return response.status == 422 and any(
        cause.get("reason") == "FieldValueDuplicate" and "ports" in str(cause.get("field"))
        for cause in causes
    )


def error_from(response: ApiResponse, kind: Kind, what: str) -> OperatorError:
    """Return the error for an unsuccessful response.

    Args:
        response: The response.
        kind: The requested kind.
        what: The object, for the message.
    """
    text = f"{what}: {response.message}"
    reason = _terminal_reason(response, kind)
    if reason:
        return TerminalError(text, reason)
    match response.status:
        case 404 if not response.is_about_object:
            return KindMissing(f"the cluster does not have the kind {kind.name} of {kind.api_version}")
        case 404 | 409 | 410:
            return NotFoundOrConflict(text)
        case _:
            return TransientError(text, response.retry_after)


def _terminal_reason(response: ApiResponse, kind: Kind) -> Reason | None:
    if response.status == 403:
        return Reason.FORBIDDEN
    # The API server returns 500 for a body that does not match the schema.
    is_bad_body = response.status == 500 and _BAD_BODY.search(response.message)
    if is_bad_body or response.status in {400, 422}:
        return Reason.INVALID_POD_FIELDS if kind in WORKLOADS else Reason.INVALID_SPEC
    return None
