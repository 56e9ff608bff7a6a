# SPDX-License-Identifier: Apache-2.0
"""The server's certificates: ``ssl_certificate``, its keys and passphrases, and their description."""

from __future__ import annotations

import base64
import ctypes
import re
import ssl
from typing import Final

from mailproxy.protocols.types import Secret
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import OpenSsl, reason_of
from mailproxy_config.model import CertificateFiles, StartTls

_PEM: Final = 1
_MAX_PASSPHRASE: Final = 1024
_DAY: Final = 86_400
_KEY_TYPES: Final = {6: "RSA", 116: "DSA", 408: "EC"}
_NID_SUBJECT_ALT_NAME: Final = 85
_GEN_DNS: Final = 2
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", re.ASCII
)


def load(builder: ContextBuilder, native: OpenSsl | None) -> tuple[float | None, ...]:
    """Load every certificate with its key; there may be one for each type of key.

    Returns:
        When each certificate expires, in seconds since 1970, in the order of
        the directive; ``None`` for a malformed date.  Empty without ``native``.
    """
    server = builder.server
    if not server.ssl_certificate:
        mode = "starttls" if server.starttls is not StartTls.DISABLED else "listen ... ssl"
        if any(listen.ssl for listen in server.listen):
            mode = "listen ... ssl"
        builder.add_problem("ssl_certificate", f'no "ssl_certificate" is defined for the "{mode}" directive')
        return ()
    passphrases = read_passphrases(builder, "ssl_password_file", server.ssl_password_file)
    ends = []
    for position, pair in enumerate(server.default_certificates):
        loaded = load_pair(builder, f"ssl_certificate[{position}]", pair, passphrases, native)
        if loaded and native is not None:
            ends.append(expiry(native, native.lib.SSL_CTX_get0_certificate(native.context(builder.context))))
    return tuple(ends)


def read_passphrases(builder: ContextBuilder, directive: str, path: str | None) -> list[Secret]:
    """Read a file of passphrases: one per line, empty lines are ignored."""
    if path is None:
        return []
    contents = builder.read_file(directive, path) or b""
    lines = [line.removesuffix(b"\r") for line in contents.split(b"\n")]
    if any(len(line) > _MAX_PASSPHRASE for line in lines):
        builder.add_problem(directive, f"a passphrase has more than {_MAX_PASSPHRASE} bytes")
        return []
    return [Secret(line) for line in lines if line]


def load_pair(
    builder: ContextBuilder,
    place: str,
    pair: CertificateFiles,
    passphrases: list[Secret],
    native: OpenSsl | None,
) -> bool:
    """Load a certificate with its key; add a problem and return ``False`` if that fails."""
    both = builder.read_file(place, pair.certificate), builder.read_file(place, pair.key)
    if None in both:
        return False
    asked: list[Secret] = []
    for secret in passphrases or [Secret(b"")]:

        def answer(secret: Secret = secret) -> bytes:
            asked.append(secret)
            return secret.reveal()

        try:
            builder.context.load_cert_chain(pair.certificate, pair.key, password=answer)
        except ssl.SSLError as error:
            reason = reason_of(error)
        else:
            return True
        if not asked:
            break
    builder.add_problem(place, _explain_failure(builder, place, pair, native, reason, encrypted=bool(asked)))
    return False


def _explain_failure(
    builder: ContextBuilder,
    place: str,
    pair: CertificateFiles,
    native: OpenSsl | None,
    reason: str,
    *,
    encrypted: bool,
) -> str:
    """Find out which of the two files is bad, which ``ssl`` does not report, and why.

    An encrypted key is not loaded again: OpenSSL would prompt for its passphrase on the terminal.
    """
    if native is not None:
        context = native.context(builder.context)
        if native.lib.SSL_CTX_use_certificate_chain_file(context, pair.certificate.encode()) != 1:
            return f'cannot load certificate "{pair.certificate}": {native.errors()}'
    if encrypted:
        directive = f"{place.partition('ssl_')[0]}ssl_password_file"
        hint = f"no passphrase in {directive} opens it"
        if getattr(builder.server, directive) is None:
            hint = f"it is encrypted: name a file with its passphrase in {directive}"
        return f'cannot load certificate key "{pair.key}": {hint}'
    if native is not None and native.lib.SSL_CTX_use_PrivateKey_file(context, pair.key.encode(), _PEM) != 1:
        reason = native.errors()
    reason = reason.replace("_", " ").lower()
    if "mismatch" in reason:
        hint = f'it is not the key of "{pair.certificate}"'
        return f'SSL_CTX_use_PrivateKey("{pair.key}") failed: {reason}: {hint}'
    return f'cannot load certificate key "{pair.key}": {reason}'


def key_algorithms(native: OpenSsl, x509: int) -> tuple[bytes | None, bytes | None]:
    """Return a certificate's signature algorithm and key: ``RSA-SHA256`` and ``RSA2048``.

    The key is ``None`` for types other than RSA, DSA and EC.
    """
    lib = native.lib
    signature: bytes | None = lib.OBJ_nid2sn(lib.X509_get_signature_nid(x509))
    key = lib.X509_get0_pubkey(x509)
    kind = _KEY_TYPES.get(lib.EVP_PKEY_get_base_id(key)) if key else None
    return signature, f"{kind}{lib.EVP_PKEY_get_bits(key)}".encode() if kind else None


def parse_certificate(native: OpenSsl, pem: bytes) -> int | None:
    """Parse the first certificate of a PEM file, without its key.

    Returns:
        An ``X509``, to be freed with ``X509_free``; ``None`` if that fails.
    """
    found = _CERTIFICATE.search(pem)
    if found is None:
        return None
    try:
        der = base64.b64decode(found[1])
    except ValueError:
        return None
    start = ctypes.c_char_p(der)
    x509: int | None = native.lib.d2i_X509(None, ctypes.byref(start), len(der))
    if not x509:
        native.errors()
        return None
    return x509


def key_type(native: OpenSsl, x509: int) -> int:
    """Return OpenSSL's number for the type of a certificate's key; 0 if the key is not known."""
    key = native.lib.X509_get0_pubkey(x509)
    return int(native.lib.EVP_PKEY_get_base_id(key)) if key else 0


def dns_names(native: OpenSsl, x509: int) -> tuple[str, ...]:
    """Return the ``dNSName`` entries of a certificate's ``subjectAltName`` (RFC 5280 section 4.2.1.6).

    Entries that are not ASCII are left out.
    """
    lib = native.lib
    names = lib.X509_get_ext_d2i(x509, _NID_SUBJECT_ALT_NAME, None, None)
    if not names:
        native.errors()
        return ()
    found: list[str] = []
    kind = ctypes.c_int()
    try:
        for position in range(lib.OPENSSL_sk_num(names)):
            value = lib.GENERAL_NAME_get0_value(lib.OPENSSL_sk_value(names, position), ctypes.byref(kind))
            if kind.value != _GEN_DNS:
                continue
            text = ctypes.string_at(lib.ASN1_STRING_get0_data(value), lib.ASN1_STRING_length(value))
            if text.isascii():
                found.append(text.decode("ascii"))
    finally:
        lib.GENERAL_NAMES_free(names)
    return tuple(found)


def expiry(native: OpenSsl, x509: int) -> float | None:
    """Return when a certificate expires, in seconds since 1970; ``None`` for a malformed date.

    Works for the years 0 to 9999, whatever the size of ``time_t``.
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
