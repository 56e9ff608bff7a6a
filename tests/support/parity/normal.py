"""What two proxies may differ in without differing: time, chance, and where they live."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Final

_SALT: Final = re.compile(rb"<[0-9]+\.[0-9]+@")
_PROMPT: Final = re.compile(rb"^(\+|334) ([A-Za-z0-9+/=]{24,})(?=\r\n)", re.MULTILINE)
_VERSION: Final = re.compile(rb"(?<= HTTP/1\.)[01](?=\r\n)")


class Names:
    """Puts names in place of addresses and ports that only one playing has.

    Args:
        replaced: What is replaced, by what.
    """

    def __init__(self, replaced: dict[str, str]) -> None:
        self._replaced = [
            (re.compile(rb"(?<![0-9A-Fa-f])%b(?![0-9A-Fa-f])" % re.escape(old.encode())), new.encode())
            for old, new in replaced.items()
        ]

    def said(self, octets: bytes) -> bytes:
        """What a client or an upstream heard."""
        for old, new in self._replaced:
            octets = old.sub(new, octets)
        return _PROMPT.sub(_without_salt, _SALT.sub(b"<R.T@", octets))

    def asked(self, request: bytes) -> bytes:
        """What the authorization service was asked; of HTTP's version only the minor digit may differ."""
        line, end, rest = request.partition(b"\r\n")
        return self.said(_VERSION.sub(b"x", line + end) + rest)


def _without_salt(prompt: re.Match[bytes]) -> bytes:
    try:
        text = b64decode(prompt[2], validate=True)
    except NotBase64:
        return prompt[0]
    return prompt[1] + b" " + b64encode(_SALT.sub(b"<R.T@", text))
