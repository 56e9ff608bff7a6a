# SPDX-License-Identifier: Apache-2.0
"""Client certificates: ``ssl_verify_client`` and what belongs to it.

The handshake always completes.  The verdict is OpenSSL's verification result,
which a session carries along when it is resumed; the protocol speaks it.

OpenSSL, told to go on after an error, remembers the last one only, and so
does nginx.  Here an error that ``optional_no_ca`` does not tolerate is never
hidden by one that it does.
"""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.types import TlsInfo
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import CHAIN_CALLBACK, VERIFY_CALLBACK, OpenSsl
from mailproxy_config.model import VerifyClient

TOLERABLE: Final = frozenset({18, 19, 20, 21, 27})
"""Self-signed leaf, self-signed in chain, no local issuer, unverifiable leaf, untrusted: nginx's own list."""

_VERIFY_PEER: Final = 1
_PEM: Final = 1
_CRL_CHECK_ALL: Final = 0x4 | 0x8
_UNSPECIFIED: Final = 1


def apply(draft: ContextBuilder, native: OpenSsl) -> None:
    """Ask clients for certificates, where they are to be asked."""
    server = draft.server
    if server.ssl_verify_client is VerifyClient.DISABLED:
        return
    if _has_no_authority(draft):
        draft.refuse(
            "ssl_verify_client",
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
        )
        return
    context = native.context(draft.context)
    judge = _ChainVerifier(native)
    draft.kept.append(judge)
    native.lib.SSL_CTX_set_verify(context, _VERIFY_PEER, judge.on_certificate)
    native.lib.SSL_CTX_set_cert_verify_callback(context, judge.on_chain, None)
    native.lib.SSL_CTX_set_verify_depth(context, server.ssl_verify_depth)
    _announce(draft, native, context)
    _trust(draft, native, context, "ssl_client_certificate", server.ssl_client_certificate)
    _trust(draft, native, context, "ssl_trusted_certificate", server.ssl_trusted_certificate)
    _revoke(draft, native, context)


def is_bad(mode: VerifyClient, info: TlsInfo) -> bool:
    """Tell whether this mode lets the client go no further; its session is then forgotten, as in nginx."""
    if info.certificate is None:
        return mode is VerifyClient.REQUIRED
    if mode is VerifyClient.OPTIONAL_NO_CA and info.verify_is_tolerable:
        return False
    return info.verify_code != 0


class _ChainVerifier:
    """Verifies a chain to its end, whatever is wrong with it, and settles on one error.

    Attributes:
        on_chain: OpenSSL's callback in place of verification: does it, and lets the handshake go on.
        on_certificate: OpenSSL's callback for every finding on the way.
    """

    def __init__(self, native: OpenSsl) -> None:
        self._lib = native.lib
        self._errors: list[int] = []
        self.on_chain = CHAIN_CALLBACK(self._verify)
        self.on_certificate = VERIFY_CALLBACK(self._note)

    def _verify(self, store: int, _own: int) -> int:
        lib, errors = self._lib, self._errors
        errors.clear()
        completed = lib.X509_verify_cert(store) == 1
        if errors:
            lib.X509_STORE_CTX_set_error(store, _weightiest(errors))
        elif not completed and lib.X509_STORE_CTX_get_error(store) == 0:
            lib.X509_STORE_CTX_set_error(store, _UNSPECIFIED)
        return 1

    def _note(self, is_fine: int, store: int) -> int:
        if not is_fine:
            self._errors.append(self._lib.X509_STORE_CTX_get_error(store))
        return 1


def _weightiest(errors: list[int]) -> int:
    """The last error that nothing tolerates, else the last one."""
    return next((code for code in reversed(errors) if code not in TOLERABLE), errors[-1])


def _has_no_authority(draft: ContextBuilder) -> bool:
    server = draft.server
    return (
        server.ssl_verify_client is not VerifyClient.OPTIONAL_NO_CA
        and server.ssl_client_certificate is None
        and server.ssl_trusted_certificate is None
    )


def _announce(draft: ContextBuilder, native: OpenSsl, context: int) -> None:
    """Put the names of ``ssl_client_certificate`` into the certificate request."""
    path = draft.server.ssl_client_certificate
    if path is None:
        return
    names = native.lib.SSL_load_client_CA_file(path.encode())
    if names:
        native.lib.SSL_CTX_set_client_CA_list(context, names)
    else:
        native.errors()  # `_trust` reads the same file and tells what is wrong with it


def _trust(draft: ContextBuilder, native: OpenSsl, context: int, directive: str, path: str | None) -> None:
    if path is None or draft.contents(directive, path) is None:
        return
    if native.lib.SSL_CTX_load_verify_file(context, path.encode()) != 1:
        draft.refuse(directive, f'cannot load certificates "{path}": {native.errors()}')


def _revoke(draft: ContextBuilder, native: OpenSsl, context: int) -> None:
    """Check the whole chain against ``ssl_crl``, whose certificates, if any, are not thereby trusted."""
    path = draft.server.ssl_crl
    if path is None or draft.contents("ssl_crl", path) is None:
        return
    lib = native.lib
    store = lib.SSL_CTX_get_cert_store(context)
    lookup = lib.X509_STORE_add_lookup(store, lib.X509_LOOKUP_file())
    if lib.X509_load_crl_file(lookup, path.encode(), _PEM) == 0:
        draft.refuse("ssl_crl", f'cannot load CRL "{path}": {native.errors()}')
        return
    lib.X509_STORE_set_flags(store, _CRL_CHECK_ALL)
