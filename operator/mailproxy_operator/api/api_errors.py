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
class Answer:
    """An HTTP response of the API server.

    Attributes:
        body: The JSON body; empty when the body is not JSON.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300

    @property
    def message(self) -> str:
        """The message of the API server."""
        said = str(self.body.get("message") or f"HTTP {self.status}")[:2000]
        if self.status == 401:
            return f"{said}: the API server does not accept our credentials; they may have expired"
        return said

    @property
    def names_object(self) -> bool:
        """Whether the response is about an object, and not about a path that does not exist."""
        return self.body.get("kind") == "Status"


def code_class(status: int) -> str:
    """Return the metric label of a status code: its class, or the code itself for some codes."""
    return str(status) if status in {409, 410, 422, 429} else f"{status // 100}xx"


def warnings(headers: list[str]) -> tuple[str, ...]:
    """Read ``Warning`` headers (RFC 7234 section 5.5) as the API server writes them."""
    found = (_WARNING.match(header) for header in headers)
    return tuple(re.sub(r"\\(.)", r"\1", one[1]) for one in found if one)


def is_port_drift(answer: Answer) -> bool:
    """Return whether two ports share a name: a user has edited the number of a port but not its name."""
    causes = (answer.body.get("details") or {}).get("causes") or []
    return answer.status == 422 and any(
        cause.get("reason") == "FieldValueDuplicate" and "ports" in str(cause.get("field"))
        for cause in causes
    )


def error_from(answer: Answer, kind: Kind, what: str) -> OperatorError:
    """Return the error for an unsuccessful response.

    Args:
        answer: The response.
        kind: The requested kind.
        what: The object, for the message.
    """
    text = f"{what}: {answer.message}"
    hopeless = _hopeless_reason(answer, kind)
    if hopeless:
        return TerminalError(text, hopeless)
    match answer.status:
        case 404 if not answer.names_object:
            return KindMissing(f"the cluster does not have the kind {kind.name} of {kind.api_version}")
        case 404 | 409 | 410:
            return NotFoundOrConflict(text)
        case _:
            return TransientError(text, answer.retry_after)


def _hopeless_reason(answer: Answer, kind: Kind) -> Reason | None:
    if answer.status == 403:
        return Reason.FORBIDDEN
    # The API server returns 500 for a body that does not match the schema.
    misfit = answer.status == 500 and _BAD_BODY.search(answer.message)
    if misfit or answer.status in {400, 422}:
        return Reason.INVALID_POD_FIELDS if kind in WORKLOADS else Reason.INVALID_SPEC
    return None
