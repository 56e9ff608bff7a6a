# SPDX-License-Identifier: Apache-2.0
"""TLS to the API server: the verification of its certificate, and descriptions of failures.

Python 3.13 verifies with ``VERIFY_X509_STRICT`` (RFC 5280): a CA certificate without
the extensions key usage or authority key identifier is rejected.  Many clusters,
for example on EKS, have such a CA, and all other Kubernetes clients accept it.  The
flag is cleared only here.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, Self

import aiohttp

RENEW_SECONDS = 5.0
"""Minimum interval between two reads of refused credentials."""

_log = logging.getLogger(__name__)


class ApiServerContext(ssl.SSLContext):
    """A context that reloads its files: a renewed CA is used from the next connection on.

    asyncio calls ``wrap_bio`` for the TLS object of each connection; the newest context creates
    it, so a CA that was removed from the file is no longer trusted.

    Args:
        make: Creates a context from the current files.
        fingerprint: Returns a value that changes when ``make`` would create a different context.

    Raises:
        OSError: A file cannot be read (``ssl.SSLError`` is one of these).
    """

    _make: Callable[[], ssl.SSLContext]
    _fingerprint: Callable[[], object]
    _used_fingerprint: object
    _newest: ssl.SSLContext

    def __new__(cls, make: Callable[[], ssl.SSLContext], fingerprint: Callable[[], object]) -> Self:
        """Create this context, and one from the current files."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._make, made._fingerprint = make, fingerprint
        made._used_fingerprint, made._newest = fingerprint(), accept_any_profile(make())
        return made

    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # noqa: ANN401  as in the class above
        """Return the TLS object for one connection."""
        return self.current().wrap_bio(*arguments, **more)

    def current(self) -> ssl.SSLContext:
        """Return the context of the current files; the previous one while they cannot be used."""
        current = self._fingerprint()
        if current != self._used_fingerprint:
            try:
                self._newest = accept_any_profile(self._make())
            except OSError as error:
                _log.warning("the renewed certificates for the API server: %s", describe_error(error))
            else:
                _log.info("the certificates for the API server were renewed")
            self._used_fingerprint = current
        return self._newest


def accept_any_profile(context: ssl.SSLContext) -> ssl.SSLContext:
    """Verify chain, validity and name, but do not require all extensions of RFC 5280."""
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def files_fingerprint(*paths: object) -> tuple[object, ...]:
    """Return a value that changes with the content of files; empty paths are skipped."""
    return tuple((path, _file_fingerprint(str(path))) for path in paths if path)


def _file_fingerprint(path: str) -> object:
    # The kubelet replaces a symbolic link, other programs rename: the inode changes each time.
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def describe_error(error: BaseException) -> str:
    """Describe in one line why there is no connection, with the message of OpenSSL or the system."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the API server's certificate is not accepted: {_certificate_error(error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # asyncio puts its own message into the text; errno is the error of the system.
        number = cause.errno or 0
        text = os.strerror(number) if number > 0 else cause.strerror or str(cause)
        return f"{error.host}:{error.port}: {text}"[:300]
    if isinstance(error, TimeoutError):
        return "no response in time"
    return f"{type(error).__name__}: {error}"[:300].rstrip(": ")


def _certificate_error(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    where = f"{error.host}:{error.port}"
    return f"{where}: {getattr(cause, 'verify_message', '') or cause}"[:300]
