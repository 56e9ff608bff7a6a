# SPDX-License-Identifier: Apache-2.0
"""STARTTLS at upstreams: what the three protocols share.

Nothing that an upstream sends in clear text before the handshake has an effect after it
(RFC 3207 section 4.2, RFC 2595 section 3.1, RFC 9051 section 6.2.1).
"""

from __future__ import annotations

from typing import Final

from mailproxy.enums import UpstreamTlsFailure
from mailproxy.errors import UpstreamTlsError

AFTER_TLS: Final = b"\r\n"
"""What is received when a handshake is complete: no greeting, no capabilities."""


def not_offered(reply: bytes, command: str) -> UpstreamTlsError:
    """Make the error for an upstream that does not offer STARTTLS, or refuses it."""
    text = (
        f"upstream does not offer {command}: set proxySsl to Enabled or Disabled, or the port in Auth-Server"
    )
    return UpstreamTlsError(UpstreamTlsFailure.STRIPPED, text, reply=reply)


def refused(reply: bytes, command: str) -> UpstreamTlsError:
    """Make the error for another reply to STARTTLS than a positive one."""
    return UpstreamTlsError(UpstreamTlsFailure.STRIPPED, f"upstream refused {command}", reply=reply)


def injected(command: str) -> UpstreamTlsError:
    """Make the error for bytes in clear text behind the positive reply to STARTTLS (CVE-2011-0411).

    These bytes are no reply: they are not logged, and the client does not get them.
    """
    text = f"upstream sent bytes in clear text after its reply to {command}"
    return UpstreamTlsError(UpstreamTlsFailure.INJECTED, text)
