# SPDX-License-Identifier: Apache-2.0
"""Client certificates: verification (``ssl_verify_client`` and related directives), and their description.

The handshake always completes.  The result of the verification is stored in
the TLS session, also when it is resumed; the mail protocol sends the reply to
a bad certificate.

If verification continues after an error, OpenSSL keeps the last error only,
and so does nginx.  Here an error that ``optional_no_ca`` does not tolerate
takes precedence over those that it tolerates.
"""

from __future__ import annotations

import ctypes
import hashlib
import ssl
from typing import Final

from mailproxy.protocols.types import ClientCertificate
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import CHAIN_CALLBACK, VERIFY_CALLBACK, OpenSsl
from mailproxy_config.model import VerifyClient

TOLERABLE: Final = frozenset({18, 19, 20, 21, 27})
"""Self-signed leaf, self-signed in chain, no local issuer, unverifiable leaf, untrusted: nginx's list."""

_VERIFY_PEER: Final = 1
_PEM: Final = 1
_CRL_CHECK_ALL: Final = 0x4 | 0x8
_UNSPECIFIED: Final = 1
_XN_FLAG_RFC2253: Final = 0x1110317
_NID_COMMON_NAME: Final = 13


def apply(builder: ContextBuilder, native: OpenSsl) -> None:
    """Request certificates from clients if ``ssl_verify_client`` is on."""
    server = builder.server
    if server.ssl_verify_client is VerifyClient.DISABLED:
        return
    if (
        server.ssl_verify_client is not VerifyClient.OPTIONAL_NO_CA
        and server.ssl_client_certificate is None
        and server.ssl_trusted_certificate is None
    ):
        builder.add_problem(
            "ssl_verify_client",
            "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client",
        )
        return
    context = native.context(builder.context)
    verifier = _ChainVerifier(native)
    builder.references.append(verifier)
    native.lib.SSL_CTX_set_verify(context, _VERIFY_PEER, verifier.on_certificate)
    native.lib.SSL_CTX_set_cert_verify_callback(context, verifier.on_chain, None)
    native.lib.SSL_CTX_set_verify_depth(context, server.ssl_verify_depth)
    _send_authority_names(builder, native, context)
    trust(builder, native, "ssl_client_certificate", server.ssl_client_certificate)
    trust(builder, native, "ssl_trusted_certificate", server.ssl_trusted_certificate)
    check_revocation(builder, native, "ssl_crl", server.ssl_crl)


class _ChainVerifier:
    """Verifies a whole chain in spite of errors, and chooses the error that is reported.

    Attributes:
        on_chain: OpenSSL's callback for the verification of a chain; it lets the handshake continue.
        on_certificate: OpenSSL's callback for each certificate and each error.
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
            lib.X509_STORE_CTX_set_error(store, _most_severe(errors))
        elif not completed and lib.X509_STORE_CTX_get_error(store) == 0:
            lib.X509_STORE_CTX_set_error(store, _UNSPECIFIED)
        return 1

    def _note(self, is_fine: int, store: int) -> int:
        if not is_fine:
            self._errors.append(self._lib.X509_STORE_CTX_get_error(store))
        return 1


def _most_severe(errors: list[int]) -> int:
    """Return the last error that is not tolerable; the last one if all are."""
    return next((code for code in reversed(errors) if code not in TOLERABLE), errors[-1])


def _send_authority_names(builder: ContextBuilder, native: OpenSsl, context: int) -> None:
    """Put the names of ``ssl_client_certificate`` into the certificate request."""
    path = builder.server.ssl_client_certificate
    if path is None:
        return
    names = native.lib.SSL_load_client_CA_file(path.encode())
    if names:
        native.lib.SSL_CTX_set_client_CA_list(context, names)
    else:
        native.errors()  # `trust` reads the same file and reports the problem


def trust(builder: ContextBuilder, native: OpenSsl, directive: str, path: str | None) -> None:
    """Trust the certificates in a file, if there is one."""
    if path is None or builder.read_file(directive, path) is None:
        return
    context = native.context(builder.context)
    if native.lib.SSL_CTX_load_verify_file(context, path.encode()) != 1:
        builder.add_problem(directive, f'cannot load certificates "{path}": {native.errors()}')


def check_revocation(builder: ContextBuilder, native: OpenSsl, directive: str, path: str | None) -> None:
    """Check the whole chain against the CRLs in a file; certificates in that file are not trusted."""
    if path is None or builder.read_file(directive, path) is None:
        return
    lib = native.lib
    store = lib.SSL_CTX_get_cert_store(native.context(builder.context))
    lookup = lib.X509_STORE_add_lookup(store, lib.X509_LOOKUP_file())
    if lib.X509_load_crl_file(lookup, path.encode(), _PEM) == 0:
        builder.add_problem(directive, f'cannot load CRL "{path}": {native.errors()}')
        return
    lib.X509_STORE_set_flags(store, _CRL_CHECK_ALL)


def client_certificate(native: OpenSsl, x509: int, der: bytes) -> ClientCertificate:
    """Describe a client's certificate for ``auth_http`` and PROXY version 2.

    Args:
        native: The library.
        x509: The certificate; not freed.
        der: The same in DER form.
    """
    lib = native.lib
    return ClientCertificate(
        subject=_print_name(native, lib.X509_get_subject_name(x509)),
        issuer=_print_name(native, lib.X509_get_issuer_name(x509)),
        # OpenSSL breaks lines after 35 bytes of a serial number
        serial=native.printed(
            lambda bio: lib.i2a_ASN1_INTEGER(bio, lib.X509_get0_serialNumber(x509))
        ).replace(b"\\\n", b""),
        fingerprint=hashlib.sha1(der, usedforsecurity=False).hexdigest().encode(),
        pem=ssl.DER_cert_to_PEM_cert(der).encode(),
        common_name=_common_name(native, lib.X509_get_subject_name(x509)),
    )


def _print_name(native: OpenSsl, name: int) -> bytes:
    return native.printed(lambda bio: native.lib.X509_NAME_print_ex(bio, name, 0, _XN_FLAG_RFC2253))


def _common_name(native: OpenSsl, name: int) -> bytes | None:
    lib = native.lib
    position = lib.X509_NAME_get_index_by_NID(name, _NID_COMMON_NAME, -1)
    if position < 0:
        return None
    start = ctypes.c_void_p()
    entry = lib.X509_NAME_get_entry(name, position)
    length = lib.ASN1_STRING_to_UTF8(ctypes.byref(start), lib.X509_NAME_ENTRY_get_data(entry))
    if length < 0:
        native.errors()
        return None
    try:
        return ctypes.string_at(start, length)
    finally:
        lib.CRYPTO_free(start, b"", 0)
