# SPDX-License-Identifier: Apache-2.0
"""TLS to the API server: which certificates are accepted, and what a failure is called.

Python 3.13 verifies with ``VERIFY_X509_STRICT`` (RFC 5280): an authority without
the extensions key usage or authority key identifier is refused.  Many clusters
have one, EKS among them, and every other Kubernetes client accepts it.  The
flag is cleared here, and only here.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, Self

import aiohttp

RENEW_SECONDS = 5.0
"""Credentials that are refused are not read again more often than this."""

_log = logging.getLogger(__name__)


class ApiServerContext(ssl.SSLContext):
    """A context that follows its files: a renewed authority holds from the next connection on.

    asyncio asks it for the TLS object of each connection (``wrap_bio``); that is made by the
    newest context, so an authority that was taken out of the file is no longer trusted either.

    Args:
        make: Makes a context from the files as they are.
        mark: Changes whenever ``make`` would give another one.

    Raises:
        OSError: A file cannot be read (``ssl.SSLError`` is one of these).
    """

    _make: Callable[[], ssl.SSLContext]
    _mark: Callable[[], object]
    _observe: object
    _newest: ssl.SSLContext

    def __new__(cls, make: Callable[[], ssl.SSLContext], mark: Callable[[], object]) -> Self:
        """Make the context, and one from the files as they are now."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._make, made._mark = make, mark
        made._observe, made._newest = mark(), accept_any_profile(make())
        return made

    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # noqa: ANN401  as in the class above
        """Begin TLS on one connection."""
        return self.current().wrap_bio(*arguments, **more)

    def current(self) -> ssl.SSLContext:
        """The context made from the files as they are; the previous one while they cannot be used."""
        seen = self._mark()
        if seen != self._observe:
            try:
                self._newest = accept_any_profile(self._make())
            except OSError as error:
                _log.warning("the renewed certificates for the API server: %s", described(error))
            else:
                _log.info("the certificates for the API server were renewed")
            self._observe = seen
        return self._newest


def accept_any_profile(context: ssl.SSLContext) -> ssl.SSLContext:
    """Verify chain, dates and name, but not whether a certificate has every extension of RFC 5280."""
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def files_mark(*paths: object) -> tuple[object, ...]:
    """What changes with the content of files; paths that are not given do not count."""
    return tuple((path, _file_mark(str(path))) for path in paths if path)


def _file_mark(path: str) -> object:
    # The kubelet swaps a link, and everybody else renames: it is another file each time.
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def described(error: BaseException) -> str:
    """Describe in a line why there is no connection, with the text of OpenSSL or of the system."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the API server's certificate is not accepted: {_certificate_error(error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # asyncio writes what it tried into the text; the number is the error of the system.
        number = cause.errno or 0
        text = os.strerror(number) if number > 0 else cause.strerror or str(cause)
        return f"{error.host}:{error.port}: {text}"[:300]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"[:300].rstrip(": ")


def _certificate_error(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    where = f"{error.host}:{error.port}"
    return f"{where}: {getattr(cause, 'verify_message', '') or cause}"[:300]
