# SPDX-License-Identifier: Apache-2.0
"""Calls the OpenSSL library that ``ssl`` has loaded, for functions that ``ssl`` does not offer.

``ssl`` lacks verification that lets a handshake complete, mandatory ALPN, and
ticket keys shared by workers.  The objects of ``ssl`` store their OpenSSL
pointer at a fixed offset.  ``probe`` checks the offset on contexts and a
connection of its own before anything else uses it, and returns
``OpenSslUnavailable`` if it is another one.

OpenSSL has a queue of errors that ``ssl`` reads too.  After a call that failed,
remove its errors with ``OpenSsl.errors``.
"""

from __future__ import annotations

import _ssl  # the extension module: which library it has loaded is the question
import ctypes
import functools
import os
import platform
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ALPN_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p),
)
VERIFY_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
CHAIN_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
TICKET_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
)
CLIENT_HELLO_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
)

_OLDEST: Final = (3, 0)
_OBJECT_HEAD: Final = object.__basicsize__
_WORD: Final = struct.calcsize("P")
_BIO_INFO: Final = 3
_SYSTEM_ERROR: Final = 0x80000000
_P, _I, _L, _U, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_char_p

_PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    # name: type of the result, types of the arguments
    "OpenSSL_version_num": (_U,),
    "ERR_get_error": (_U,),
    "ERR_clear_error": (None,),
    "ERR_reason_error_string": (_S, _U),
    "BIO_s_mem": (_P,),
    "BIO_new": (_P, _P),
    "BIO_free": (_I, _P),
    "BIO_ctrl": (_L, _P, _I, _L, _P),
    "CRYPTO_free": (None, _P, _S, _I),
    "OBJ_nid2sn": (_S, _I),
    "X509_get_subject_name": (_P, _P),
    "X509_get_issuer_name": (_P, _P),
    "X509_get0_serialNumber": (_P, _P),
    "X509_get0_notAfter": (_P, _P),
    "X509_get_ext_by_NID": (_I, _P, _I, _I),
    "X509_get_ext": (_P, _P, _I),
    "d2i_X509": (_P, _P, _P, _L),
    "X509_free": (None, _P),
    "X509_get_ext_d2i": (_P, _P, _I, _P, _P),
    "OPENSSL_sk_num": (_I, _P),
    "OPENSSL_sk_value": (_P, _P, _I),
    "GENERAL_NAME_get0_value": (_P, _P, _P),
    "GENERAL_NAMES_free": (None, _P),
    "ASN1_STRING_get0_data": (_P, _P),
    "ASN1_STRING_length": (_I, _P),
    "X509V3_EXT_print": (_I, _P, _P, _U, _I),
    "X509_get0_pubkey": (_P, _P),
    "X509_get_signature_nid": (_I, _P),
    "X509_verify_cert_error_string": (_S, _L),
    "X509_NAME_print_ex": (_I, _P, _P, _I, _U),
    "X509_NAME_get_index_by_NID": (_I, _P, _I, _I),
    "X509_NAME_get_entry": (_P, _P, _I),
    "X509_NAME_ENTRY_get_data": (_P, _P),
    "ASN1_STRING_to_UTF8": (_I, _P, _P),
    "ASN1_TIME_set": (_P, _P, _L),
    "ASN1_TIME_diff": (_I, _P, _P, _P, _P),
    "ASN1_TIME_free": (None, _P),
    "i2a_ASN1_INTEGER": (_I, _P, _P),
    "EVP_PKEY_get_base_id": (_I, _P),
    "EVP_PKEY_get_bits": (_I, _P),
    "EVP_aes_128_cbc": (_P,),
    "EVP_aes_256_cbc": (_P,),
    "EVP_EncryptInit_ex": (_I, _P, _P, _P, _S, _S),
    "EVP_DecryptInit_ex": (_I, _P, _P, _P, _S, _P),
    "EVP_MAC_init": (_I, _P, _S, ctypes.c_size_t, _P),
    "X509_STORE_add_lookup": (_P, _P, _P),
    "X509_LOOKUP_file": (_P,),
    "X509_load_crl_file": (_I, _P, _S, _I),
    "X509_STORE_set_flags": (_I, _P, _U),
    "X509_STORE_CTX_get_error": (_I, _P),
    "X509_STORE_CTX_get0_cert": (_P, _P),
    "X509_STORE_CTX_set_error": (None, _P, _I),
    "X509_verify_cert": (_I, _P),
    "SSL_CTX_ctrl": (_L, _P, _I, _L, _P),
    "SSL_CTX_get_options": (ctypes.c_uint64, _P),
    "SSL_CTX_get_verify_mode": (_I, _P),
    "SSL_CTX_get_num_tickets": (ctypes.c_size_t, _P),
    "SSL_CTX_get_cert_store": (_P, _P),
    "SSL_CTX_get0_certificate": (_P, _P),
    "SSL_CTX_use_certificate_chain_file": (_I, _P, _S),
    "SSL_CTX_use_PrivateKey_file": (_I, _P, _S, _I),
    "SSL_CTX_load_verify_file": (_I, _P, _S),
    "SSL_CTX_set_verify": (None, _P, _I, VERIFY_CALLBACK),
    "SSL_CTX_set_cert_verify_callback": (None, _P, CHAIN_CALLBACK, _P),
    "SSL_CTX_set_verify_depth": (None, _P, _I),
    "SSL_load_client_CA_file": (_P, _S),
    "SSL_CTX_set_client_CA_list": (None, _P, _P),
    "SSL_CTX_set_alpn_select_cb": (None, _P, ALPN_CALLBACK, _P),
    "SSL_CTX_set_client_hello_cb": (None, _P, CLIENT_HELLO_CALLBACK, _P),
    "SSL_client_hello_get0_ext": (_I, _P, ctypes.c_uint, _P, _P),
    "SSL_set_SSL_CTX": (_P, _P, _P),
    "SSL_get_options": (ctypes.c_uint64, _P),
    "SSL_clear_options": (ctypes.c_uint64, _P, ctypes.c_uint64),
    "SSL_set_options": (ctypes.c_uint64, _P, ctypes.c_uint64),
    "SSL_CTX_get_verify_depth": (_I, _P),
    "SSL_CTX_get_verify_callback": (_P, _P),
    "SSL_set_verify": (None, _P, _I, _P),
    "SSL_set_verify_depth": (None, _P, _I),
    "SSL_CTX_set_timeout": (_L, _P, _L),
    "SSL_CTX_remove_session": (_I, _P, _P),
    "SSL_CTX_set_tlsext_ticket_key_evp_cb": (_L, _P, TICKET_CALLBACK),
    "SSL_CONF_CTX_new": (_P,),
    "SSL_CONF_CTX_free": (None, _P),
    "SSL_CONF_CTX_set_flags": (ctypes.c_uint, _P, ctypes.c_uint),
    "SSL_CONF_CTX_set_ssl_ctx": (None, _P, _P),
    "SSL_CONF_CTX_finish": (_I, _P),
    "SSL_CONF_cmd": (_I, _P, _S, _S),
    "SSL_set_shutdown": (None, _P, _I),
    "SSL_ctrl": (_L, _P, _I, _L, _P),
    "SSL_set_session_id_context": (_I, _P, _S, ctypes.c_uint),
    "SSL_select_next_proto": (_I, _P, _P, _P, ctypes.c_uint, _P, ctypes.c_uint),
    "SSL_get_SSL_CTX": (_P, _P),
    "SSL_get0_peer_certificate": (_P, _P),
    "SSL_get_certificate": (_P, _P),
    "SSL_get_session": (_P, _P),
    "SSL_set_session": (_I, _P, _P),
    "SSL_SESSION_dup": (_P, _P),
    "SSL_SESSION_free": (None, _P),
    "SSL_SESSION_has_ticket": (_I, _P),
    "SSL_SESSION_is_resumable": (_I, _P),
    "SSL_get_servername": (_S, _P, _I),
    "SSL_get_verify_result": (_L, _P),
    "SSL_has_pending": (_I, _P),
    "SSL_shutdown": (_I, _P),
    "SSL_version": (_I, _P),
}


@dataclass(frozen=True, slots=True)
class OpenSslUnavailable:
    """Why the OpenSSL of ``ssl`` cannot be called on this Python."""

    reason: str


class OpenSsl:
    """The library, and the offset of its pointers.

    Attributes:
        lib: The functions of ``_PROTOTYPES``, called with the GIL held: none of them waits.
    """

    __slots__ = ("_head", "lib")

    def __init__(self, lib: ctypes.PyDLL, head: int) -> None:
        self.lib = lib
        self._head = head

    def context(self, context: ssl.SSLContext) -> int:
        """Return the address of a context's ``SSL_CTX``; it exists as long as the context."""
        return _word_at(id(context) + self._head)

    def connection(self, connection: object) -> int:
        """Return the address of the ``SSL`` of a connection's ``_sslobj``; it exists as long as that."""
        return _word_at(id(connection) + self._head + _WORD)

    def errors(self) -> str:
        """Remove all errors from OpenSSL's queue and return their texts, the cause first."""
        lib, words = self.lib, []
        while code := lib.ERR_get_error():
            if code & _SYSTEM_ERROR:
                words.append(os.strerror(code & ~_SYSTEM_ERROR))
            elif reason := lib.ERR_reason_error_string(code):
                words.append(reason.decode("ascii", "replace"))
        return ", ".join(dict.fromkeys(words)) or "no reason given"

    def printed(self, write: Callable[[int], object]) -> bytes:
        """Return what ``write`` prints into the ``BIO`` that is its argument."""
        lib = self.lib
        bio = lib.BIO_new(lib.BIO_s_mem())
        try:
            write(bio)
            start = ctypes.c_void_p()
            length = lib.BIO_ctrl(bio, _BIO_INFO, 0, ctypes.byref(start))
            return ctypes.string_at(start, length) if length > 0 and start.value else b""
        finally:
            lib.BIO_free(bio)


def reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason as ``ssl`` has it, e.g. ``NO_SHARED_CIPHER``, or the message of the error."""
    return getattr(error, "reason", None) or str(error.args[-1] if error.args else error)


@functools.cache
def load_openssl() -> OpenSsl | OpenSslUnavailable:
    """Return the library of this process; probed once."""
    return probe()


def probe(path: str | None = None, head: int = _OBJECT_HEAD) -> OpenSsl | OpenSslUnavailable:
    """Check that the library can be called and its pointers are found.

    Args:
        path: The library, or an object linked with it; by default the ``_ssl`` extension.
        head: Bytes before the first field of an object.
    """
    if platform.python_implementation() != "CPython":
        return OpenSslUnavailable("objects of this Python cannot be looked into")
    try:
        lib = _declared(ctypes.PyDLL(path or getattr(_ssl, "__file__", None)))
    except (OSError, AttributeError) as error:
        return OpenSslUnavailable(f"its OpenSSL cannot be called: {error}")
    if lib.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER:
        return OpenSslUnavailable("it carries another OpenSSL than the one that can be called")
    if ssl.OPENSSL_VERSION_INFO[:2] < _OLDEST:
        return OpenSslUnavailable(f"{ssl.OPENSSL_VERSION} is older than 3.0")
    native = OpenSsl(lib, head)
    if not (_contexts_agree(native) and _connections_agree(native)):
        return OpenSslUnavailable("the layout of its ssl objects is not known")
    return native


def _declared(lib: ctypes.PyDLL) -> ctypes.PyDLL:
    for name, (returns, *takes) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = returns, takes
    return lib


def _word_at(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _contexts_agree(native: OpenSsl) -> bool:
    """Whether OpenSSL and ``ssl`` return the same settings for two contexts that differ."""
    one, other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    other.verify_mode = ssl.CERT_OPTIONAL
    other.num_tickets = 1
    pointers = native.context(one), native.context(other)
    if pointers[0] == pointers[1] or not all(map(_is_memory, pointers)):
        return False
    return all(
        _has_same_settings(native.lib, pointer, context)
        for pointer, context in zip(pointers, (one, other), strict=True)
    )


def _has_same_settings(lib: ctypes.PyDLL, pointer: int, context: ssl.SSLContext) -> bool:
    verify = {ssl.CERT_NONE: 0, ssl.CERT_OPTIONAL: 1, ssl.CERT_REQUIRED: 3}[context.verify_mode]
    return bool(
        lib.SSL_CTX_get_options(pointer) == context.options & 0xFFFFFFFFFFFFFFFF
        and lib.SSL_CTX_get_verify_mode(pointer) == verify
        and lib.SSL_CTX_get_num_tickets(pointer) == context.num_tickets
    )


def _connections_agree(native: OpenSsl) -> bool:
    """Whether a connection's pointer belongs to its context.

    The field after the pointer is the context object; it is compared before
    the pointer is dereferenced.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    connection = made._sslobj  # type: ignore[attr-defined]  # noqa: SLF001 - the object that holds the pointer
    pointer = native.connection(connection)
    if _word_at(id(connection) + native._head + 2 * _WORD) != id(context) or not _is_memory(pointer):  # noqa: SLF001
        return False
    return bool(native.lib.SSL_get_SSL_CTX(pointer) == native.context(context))


def _is_memory(address: int) -> bool:
    """Whether an address is aligned and, where ``/proc`` is readable, in writable memory."""
    if not address or address % _WORD:
        return False
    try:
        regions = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return True
    for region in regions:
        span, access, *_ = region.split(None, 2)
        first, _, last = span.partition("-")
        if int(first, 16) <= address < int(last, 16):
            return access.startswith("rw")
    return False
