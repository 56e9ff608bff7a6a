# SPDX-License-Identifier: Apache-2.0
"""A client of TLS 1.3 that does only what a server cannot do without (RFC 8446).

A handshake with OpenSSL costs a client more than the server: most of it is the
verification of the certificate's signature.  This client uses one X25519 key for
all handshakes, and verifies nothing.  Messages, sizes and the work of the server
are those of a handshake with OpenSSL's defaults: ``TLS_AES_256_GCM_SHA384``,
X25519, session tickets.  It is for load on loopback, and protects nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HASH: Final = "sha384"
_SIZE: Final = 48
_CHANGE_CIPHER_SPEC, _HANDSHAKE, _DATA = 20, 22, 23
_FINISHED: Final = 20
_KEY_SHARE: Final = 0x0033
_CCS: Final = b"\x14\x03\x03\x00\x01\x01"
_KEY: Final = X25519PrivateKey.generate()


def _info(label: bytes, context: bytes, length: int) -> bytes:
    """``HkdfLabel`` (section 7.1), with the counter of HKDF's first block."""
    name = b"tls13 " + label
    return struct.pack("!HB", length, len(name)) + name + bytes((len(context),)) + context + b"\x01"


def _expand(secret: bytes, info: bytes) -> bytes:
    return hmac.digest(secret, info, _HASH)


_EMPTY: Final = hashlib.sha384().digest()
_DERIVED: Final = _info(b"derived", _EMPTY, _SIZE)
_BEFORE_KEY_EXCHANGE: Final = _expand(hmac.digest(bytes(_SIZE), bytes(_SIZE), _HASH), _DERIVED)
_KEY_INFO: Final = _info(b"key", b"", 32)
_IV_INFO: Final = _info(b"iv", b"", 12)
_FINISHED_INFO: Final = _info(b"finished", b"", _SIZE)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def _extensions(name: bytes, public: bytes) -> bytes:
    joined = (
        _extension(0, struct.pack("!HBH", len(name) + 3, 0, len(name)) + name)
        + _extension(0x000A, b"\x00\x02\x00\x1d")
        + _extension(0x000D, b"\x00\x08\x04\x03\x08\x04\x04\x01\x05\x03")
        + _extension(0x002B, b"\x02\x03\x04")
        + _extension(0x002D, b"\x01\x01")
        + _extension(_KEY_SHARE, struct.pack("!HHH", len(public) + 4, 0x001D, len(public)) + public)
    )
    return struct.pack("!H", len(joined)) + joined


_EXTENSIONS: Final = _extensions(b"mail.example.com", _KEY.public_key().public_bytes_raw())
_SUITE: Final = b"\x00\x02\x13\x02\x01\x00"


def client_hello(random: bytes, session_id: bytes) -> bytes:
    """Return the message; both arguments have 32 bytes."""
    body = b"\x03\x03" + random + bytes((len(session_id),)) + session_id + _SUITE + _EXTENSIONS
    return b"\x01" + len(body).to_bytes(3, "big") + body


def server_key(hello: bytes) -> bytes:
    """Return the key share of a ``ServerHello``.

    Raises:
        ConnectionError: The message has none.
    """
    at = 4 + 2 + 32
    at += 1 + hello[at] + 3 + 2
    while at < len(hello):
        kind, length = struct.unpack_from("!HH", hello, at)
        if kind == _KEY_SHARE:
            return hello[at + 8 : at + 4 + length]
        at += 4 + length
    raise ConnectionError("the server has not chosen X25519")


class _Keys:
    """Encryption in one direction, with the keys of one secret."""

    __slots__ = ("_cipher", "_iv", "_number")

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(_expand(secret, _KEY_INFO)[:32])
        self._iv = int.from_bytes(_expand(secret, _IV_INFO)[:12], "big")
        self._number = 0

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return nonce

    def seal(self, kind: int, data: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2, "big")
        return head + self._cipher.encrypt(self._nonce(), data + bytes((kind,)), head)

    def open(self, record: bytes) -> tuple[int, bytes]:
        plain = self._cipher.decrypt(self._nonce(), record[5:], record[:5]).rstrip(b"\0")
        return plain[-1], plain[:-1]


class LightTls:
    """One connection; its methods are those of ``benchmarks.clients.Tls``."""

    __slots__ = (
        "_bytes",
        "_finished_key",
        "_handshake",
        "_master",
        "_read",
        "_transcript",
        "_write",
        "is_secure",
        "sock",
    )

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.is_secure = False
        self._bytes = b""
        self._handshake = b""
        self._transcript: hashlib._Hash | None = None
        self._read: _Keys | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes that were received."""
        self._bytes += data

    def handshake(self) -> bool:
        """Continue the handshake; returns whether it is complete."""
        if self._transcript is None:
            hello = client_hello(os.urandom(32), os.urandom(32))
            self._transcript = hashlib.sha384(hello)
            self.sock.send(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello)
            return False
        while not self.is_secure and (record := self._next_record()):
            if record[0] == _HANDSHAKE:
                self._on_server_hello(record[5:])
            elif record[0] == _DATA:
                self._on_encrypted(record)
            elif record[0] != _CHANGE_CIPHER_SPEC:
                raise ConnectionError(f"a handshake failed: {record.hex()}")
        return self.is_secure

    def read(self) -> bytes:
        """Decrypt the complete records that were received; session tickets are discarded."""
        data = b""
        keys = self._read
        assert keys is not None
        while record := self._next_record():
            kind, plain = keys.open(record)
            if kind == _DATA:
                data += plain
        return data

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt at most 16 KiB."""
        return self._write.seal(_DATA, data)

    def _next_record(self) -> bytes:
        received = self._bytes
        if len(received) < 5:
            return b""
        size = 5 + (received[3] << 8 | received[4])
        if len(received) < size:
            return b""
        self._bytes = received[size:]
        return received[:size]

    def _on_server_hello(self, message: bytes) -> None:
        transcript = self._transcript
        assert transcript is not None
        transcript.update(message)
        shared = _KEY.exchange(X25519PublicKey.from_public_bytes(server_key(message)))
        secret = hmac.digest(_BEFORE_KEY_EXCHANGE, shared, _HASH)
        so_far = transcript.digest()
        self._write_secret(_expand(secret, _info(b"c hs traffic", so_far, _SIZE)))
        self._read = _Keys(_expand(secret, _info(b"s hs traffic", so_far, _SIZE)))
        self._master = hmac.digest(_expand(secret, _DERIVED), bytes(_SIZE), _HASH)

    def _write_secret(self, secret: bytes) -> None:
        self._handshake = b""
        self._write: _Keys = _Keys(secret)
        self._finished_key = _expand(secret, _FINISHED_INFO)

    def _on_encrypted(self, record: bytes) -> None:
        """Collect the messages of the server, up to its ``Finished``."""
        assert self._read is not None
        assert self._transcript is not None
        kind, plain = self._read.open(record)
        if kind != _HANDSHAKE:
            raise ConnectionError(f"a handshake failed: {plain.hex()}")
        messages = self._handshake + plain
        while len(messages) >= 4:
            size = 4 + int.from_bytes(messages[1:4], "big")
            if len(messages) < size:
                break
            self._transcript.update(messages[:size])
            if messages[0] == _FINISHED:
                self._finish(self._transcript.digest())
                return
            messages = messages[size:]
        self._handshake = messages

    def _finish(self, so_far: bytes) -> None:
        finished = b"\x14\x00\x00\x30" + hmac.digest(self._finished_key, so_far, _HASH)
        self.sock.send(_CCS + self._write.seal(_HANDSHAKE, finished))
        self._write = _Keys(_expand(self._master, _info(b"c ap traffic", so_far, _SIZE)))
        self._read = _Keys(_expand(self._master, _info(b"s ap traffic", so_far, _SIZE)))
        self.is_secure = True
