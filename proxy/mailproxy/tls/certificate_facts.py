# SPDX-License-Identifier: Apache-2.0
"""What certificates say, in OpenSSL's print: clients' for ``auth_http``, our own for PROXY version 2."""

from __future__ import annotations

import ctypes
import hashlib
import ssl
from typing import Final

from mailproxy.protocols.types import ClientCertificate
from mailproxy.tls.openssl import OpenSsl

_RFC2253: Final = 0x1110317
"""``XN_FLAG_RFC2253``."""
_COMMON_NAME: Final = 13
_DAY: Final = 86_400
_KEY_TYPES: Final = {6: "RSA", 116: "DSA", 408: "EC"}


def client_certificate(native: OpenSsl, x509: int, der: bytes) -> ClientCertificate:
    """Describe a client's certificate.

    Args:
        native: The library.
        x509: The certificate; borrowed.
        der: The same in DER form.
    """
    lib = native.lib
    return ClientCertificate(
        subject=_name(native, lib.X509_get_subject_name(x509)),
        issuer=_name(native, lib.X509_get_issuer_name(x509)),
        serial=_serial(native, x509),
        fingerprint=hashlib.sha1(der, usedforsecurity=False).hexdigest().encode(),
        pem=ssl.DER_cert_to_PEM_cert(der).encode(),
        common_name=_common_name(native, lib.X509_get_subject_name(x509)),
    )


def key_algorithms(native: OpenSsl, x509: int) -> tuple[bytes | None, bytes | None]:
    """Name a certificate's signature algorithm and its key: ``RSA-SHA256`` and ``RSA2048``.

    The key is ``None`` for types other than RSA, DSA and EC.
    """
    lib = native.lib
    signature: bytes | None = lib.OBJ_nid2sn(lib.X509_get_signature_nid(x509))
    key = lib.X509_get0_pubkey(x509)
    kind = _KEY_TYPES.get(lib.EVP_PKEY_get_base_id(key)) if key else None
    return signature, f"{kind}{lib.EVP_PKEY_get_bits(key)}".encode() if kind else None


def expiry(native: OpenSsl, x509: int) -> float | None:
    """Give when a certificate expires, in seconds since 1970; ``None`` where its date is malformed.

    Any year from 0 to 9999 will do, whatever the system's ``time_t`` holds.
    """
    lib = native.lib
    days, seconds = ctypes.c_int(), ctypes.c_int()
    epoch = lib.ASN1_TIME_set(None, 0)
    try:
        is_known = lib.ASN1_TIME_diff(
            ctypes.byref(days), ctypes.byref(seconds), epoch, lib.X509_get0_notAfter(x509)
        )
    finally:
        lib.ASN1_TIME_free(epoch)
    if is_known != 1:
        native.errors()
        return None
    return days.value * _DAY + float(seconds.value)


def _name(native: OpenSsl, name: int) -> bytes:
    return native.printed(lambda bio: native.lib.X509_NAME_print_ex(bio, name, 0, _RFC2253))


def _serial(native: OpenSsl, x509: int) -> bytes:
    """Print a serial number; OpenSSL breaks lines of 35 bytes, which is nothing to put in a header."""
    lib = native.lib
    printed = native.printed(lambda bio: lib.i2a_ASN1_INTEGER(bio, lib.X509_get0_serialNumber(x509)))
    return printed.replace(b"\\\n", b"")


def _common_name(native: OpenSsl, name: int) -> bytes | None:
    lib = native.lib
    position = lib.X509_NAME_get_index_by_NID(name, _COMMON_NAME, -1)
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
