# SPDX-License-Identifier: Apache-2.0
"""Our own certificates: ``ssl_certificate``, its keys, and the passphrases that open them."""

from __future__ import annotations

import ssl

from mailproxy.protocols.types import Secret
from mailproxy.tls.certificate_facts import expiry
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import OpenSsl, reason_of
from mailproxy_config.model import CertificateFiles, StartTls

_PEM = 1
_LONGEST_PASSPHRASE = 1024


def load(draft: ContextBuilder, native: OpenSsl | None) -> tuple[float | None, ...]:
    """Load every certificate with its key; later ones of another key type stand beside the earlier.

    Returns:
        When each certificate expires, in seconds since 1970 and in the order
        of the directive, ``None`` for one whose date is malformed; nothing
        where OpenSSL cannot be asked.
    """
    server = draft.server
    if not server.ssl_certificate:
        mode = "starttls" if server.starttls is not StartTls.DISABLED else "listen ... ssl"
        if any(listen.ssl for listen in server.listen):
            mode = "listen ... ssl"
        draft.refuse("ssl_certificate", f'no "ssl_certificate" is defined for the "{mode}" directive')
        return ()
    passphrases = _passphrases(draft)
    ends = []
    for position, pair in enumerate(server.ssl_certificate):
        loaded = _load_pair(draft, f"ssl_certificate[{position}]", pair, passphrases, native)
        if loaded and native is not None:
            ends.append(expiry(native, native.lib.SSL_CTX_get0_certificate(native.context(draft.context))))
    return tuple(ends)


def _passphrases(draft: ContextBuilder) -> list[Secret]:
    """Read ``ssl_password_file``: one passphrase a line, empty lines do not count."""
    if draft.server.ssl_password_file is None:
        return []
    contents = draft.contents("ssl_password_file", draft.server.ssl_password_file) or b""
    lines = [line.removesuffix(b"\r") for line in contents.split(b"\n")]
    if any(len(line) > _LONGEST_PASSPHRASE for line in lines):
        draft.refuse("ssl_password_file", f"a passphrase has more than {_LONGEST_PASSPHRASE} bytes")
        return []
    return [Secret(line) for line in lines if line]


def _load_pair(
    draft: ContextBuilder,
    place: str,
    pair: CertificateFiles,
    passphrases: list[Secret],
    native: OpenSsl | None,
) -> bool:
    both = draft.contents(place, pair.certificate), draft.contents(place, pair.key)
    if None in both:
        return False
    asked: list[Secret] = []
    for secret in passphrases or [Secret(b"")]:

        def answer(secret: Secret = secret) -> bytes:
            asked.append(secret)
            return secret.reveal()

        try:
            draft.context.load_cert_chain(pair.certificate, pair.key, password=answer)
        except ssl.SSLError as error:
            reason = reason_of(error)
        else:
            return True
        if not asked:
            break
    draft.refuse(place, _explained(draft, pair, native, reason, encrypted=bool(asked)))
    return False


def _explained(
    draft: ContextBuilder, pair: CertificateFiles, native: OpenSsl | None, reason: str, *, encrypted: bool
) -> str:
    """Find out which of the two files is wrong, which ``ssl`` does not tell, in OpenSSL's words.

    A key that asked for a passphrase is not loaded again: OpenSSL would ask the terminal.
    """
    if native is not None:
        context = native.context(draft.context)
        if native.lib.SSL_CTX_use_certificate_chain_file(context, pair.certificate.encode()) != 1:
            return f'cannot load certificate "{pair.certificate}": {native.errors()}'
    if encrypted:
        way_out = "no passphrase in ssl_password_file opens it"
        if draft.server.ssl_password_file is None:
            way_out = "it is encrypted: name a file with its passphrase in ssl_password_file"
        return f'cannot load certificate key "{pair.key}": {way_out}'
    if native is not None and native.lib.SSL_CTX_use_PrivateKey_file(context, pair.key.encode(), _PEM) != 1:
        reason = native.errors()
    reason = reason.replace("_", " ").lower()
    if "mismatch" in reason:
        hint = f'it is not the key of "{pair.certificate}"'
        return f'SSL_CTX_use_PrivateKey("{pair.key}") failed: {reason}: {hint}'
    return f'cannot load certificate key "{pair.key}": {reason}'
