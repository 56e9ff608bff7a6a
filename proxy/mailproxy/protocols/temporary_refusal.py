# SPDX-License-Identifier: Apache-2.0
"""Refusals of a login by the upstream that are no verdict on its credentials, in each protocol.

There are two sets, for two decisions:

* ``TEMPORARY``: the client must not ask for another password (``proxy_tempfail``), and the proxy's own
  credentials are not refused (``proxy_auth``).
* ``REPEATABLE``: the same login may succeed a second later, so it is worth another try
  (``proxy_next_upstream unavailable``).  The others last longer: a mailbox in use, a limit, a login
  delay; or they need an administrator (``SERVERBUG``).  More tries would add to the load of such an upstream.

Every reply of ``REPEATABLE`` is in ``TEMPORARY``, too.

Sources: RFC 5530 section 3 (IMAP), RFC 2449 section 8 and RFC 3206 section 4 (POP3), RFC 4954 section 6
(SMTP).
"""

from __future__ import annotations

import re
from typing import Final

from mailproxy.errors import UpstreamRefused
from mailproxy_config.model import Protocol


def _imap(*codes: bytes) -> re.Pattern[bytes]:
    """A tagged NO with one of these response codes; some codes have arguments."""
    listed = b"|".join(map(re.escape, codes))
    return re.compile(rb"^[^* \r\n][^ \r\n]* NO \[(?:%b)[] ]" % listed, re.IGNORECASE | re.MULTILINE)


def _pop3(*codes: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\A-ERR \[(?:%b)\]" % b"|".join(map(re.escape, codes)), re.IGNORECASE)


_SMTP: Final = re.compile(rb"\A4[0-9]{2}")

TEMPORARY: Final = {
    Protocol.IMAP: _imap(b"UNAVAILABLE", b"INUSE", b"SERVERBUG", b"LIMIT"),
    Protocol.POP3: _pop3(b"SYS/TEMP", b"IN-USE", b"LOGIN-DELAY"),
    Protocol.SMTP: _SMTP,
}
"""Found in a reply that may have untagged responses before it."""
REPEATABLE: Final = {
    Protocol.IMAP: _imap(b"UNAVAILABLE"),
    Protocol.POP3: _pop3(b"SYS/TEMP"),
    Protocol.SMTP: _SMTP,
}
"""Matches the last line of a reply."""


def is_login_refused(error: Exception, protocol: Protocol) -> bool:
    """Whether the upstream refused this client's credentials or sender; everything else is an outage.

    Args:
        error: Why the login at the upstream failed.
        protocol: Its protocol.
    """
    if not isinstance(error, UpstreamRefused) or not error.is_denial or error.kind is not None:
        return False
    return TEMPORARY[protocol].search(error.reply) is None
