# SPDX-License-Identifier: Apache-2.0
"""``Auth-Server-Group``: the authentication service names a group of upstreams instead of a server."""

from __future__ import annotations

from mailproxy.auth_http.response import quote_value
from mailproxy.enums import AuthErrorReason
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import Decision, Secret
from mailproxy_config.model import ServerConfig


def check_group(decision: Decision, server: ServerConfig, password: Secret | None) -> None:
    """Check the group of a login, if the service has named one.

    Args:
        decision: The decision of the service.
        server: The server that the client has connected to.
        password: The client's password, which an error message must not contain.

    Raises:
        InvalidAuthResponse: The server has no groups, or none with this name.
    """
    group = getattr(decision, "upstream_group", "")
    names = [each.name for each in server.upstream_groups] if group else []
    if group in names or not group:
        return
    if not names:
        reason = "the response has no Auth-Server and Auth-Port; Auth-Server-Group needs spec.upstreams"
        raise InvalidAuthResponse(reason, AuthErrorReason.NO_SERVER)
    why = f"Auth-Server-Group {{}} is not in spec.upstreams ({', '.join(names)})"
    error = InvalidAuthResponse(why, AuthErrorReason.BAD_ADDRESS)
    error.value = group.encode()
    raise quote_value(error, password, None)
