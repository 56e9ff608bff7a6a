# SPDX-License-Identifier: Apache-2.0
"""Responses of the authentication service, read as a connection reads them."""

from __future__ import annotations

from typing import NamedTuple

from mailproxy.auth_http.response import decide
from mailproxy.auth_http.response_head import ResponseHead, ResponseHeads
from mailproxy.enums import Method
from mailproxy.protocols.types import Credentials, Decision, Secret
from mailproxy_config.model import Protocol


class Response(NamedTuple):
    """A decision, and the head that it is from."""

    decision: Decision
    head: ResponseHead


def parse(
    head: bytes,
    *,
    protocol: Protocol = Protocol.IMAP,
    method: Method = Method.PASSWORD,
    user: bytes = b"john",
    password: Secret | None = None,
    accepts_names: bool = False,
    heads: ResponseHeads | None = None,
) -> Response:
    """Read a response and make the decision.

    Args:
        head: The response, up to the blank line.
        protocol: The client's protocol.
        method: The client's authentication method.
        user: The client's user name.
        password: The client's password.
        accepts_names: ``auth_http_server_names``.
        heads: The heads that the service has sent before; none by default.
    """
    parsed, sent = (ResponseHeads() if heads is None else heads).read(head)
    credentials = Credentials(method, user, password)
    return Response(decide(parsed, sent, protocol, credentials, accepts_names), parsed)
