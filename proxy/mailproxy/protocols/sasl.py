# SPDX-License-Identifier: Apache-2.0
"""SASL as the three protocols share it: PLAIN, LOGIN, CRAM-MD5 and EXTERNAL.

Each mechanism is a short dialogue that ends in credentials or in a refusal.
How a challenge is framed, and which words a response line may have, is passed
in; what the client is told about a refusal is its protocol's business, and so
is counting errors.
"""

from __future__ import annotations

from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mailproxy.enums import LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.line_buffer import LineReader
from mailproxy.protocols.sansio import ProtocolGenerator, send
from mailproxy.protocols.types import Credentials, Secret
from mailproxy_config.model import AuthMethod

_NUL, _LF, _CR = b"\0\n\r"
"""Numbers: bytes are searched for one at once; for ``b"\\r"`` only after a ``TypeError`` within."""
_PLAIN: Final = Method.PLAIN
_DIGEST_LENGTH: Final = 32
_PADDING: Final = (b"", b"", b"==", b"=")
_MECHANISMS: Final = {
    b"PLAIN": Method.PLAIN,
    b"LOGIN": Method.LOGIN,
    b"CRAM-MD5": Method.CRAM_MD5,
    b"EXTERNAL": Method.EXTERNAL,
}
_ON_DEMAND: Final = {Method.CRAM_MD5: AuthMethod.CRAM_MD5, Method.EXTERNAL: AuthMethod.EXTERNAL}
"""The mechanisms that work only where they are configured; the others always do, as in nginx."""


class Framing:
    """How a protocol frames a challenge, and how many words it takes in a response line.

    Args:
        prefix: ``+ `` or ``334 ``.
        words: The protocol's limit of arguments; one word more is a syntax error.
    """

    __slots__ = ("empty", "password", "prefix", "user", "words")

    def __init__(self, prefix: bytes, *, words: int) -> None:
        self.prefix = prefix
        self.words = words
        self.empty = self.challenge(b"")
        self.user = self.challenge(b"Username:")
        self.password = self.challenge(b"Password:")

    def challenge(self, text: bytes) -> bytes:
        """Frame one challenge, line end included."""
        return self.prefix + b2a_base64(text, newline=False) + b"\r\n"


class SaslFailure(NamedTuple):
    """Why an exchange gave no credentials.

    Every refusal is answered with the protocol's invalid-command reply; only
    ``counts`` tells whether ``max_errors`` hears of it.
    """

    method: Method | None
    """The mechanism; ``None`` for one that nobody knows."""
    result: LoginResult | None
    """What to count as the result of the attempt; ``None`` where none was made."""
    kind: ProtocolErrorKind | None = None
    """The violation, where it is one: a disabled mechanism and ``*`` are none."""
    counts: bool = False


class _Exchange(NamedTuple):
    """What the steps of one exchange share; ``end`` is where the reader must have stopped."""

    framing: Framing
    reader: LineReader
    method: Method
    end: int | None


def find_mechanism(arguments: Sequence[bytes]) -> Method | None:
    """Tell which mechanism an AUTH command asks for, ``None`` if there is no such one."""
    return _MECHANISMS.get(arguments[0].upper()) if arguments else None


def decode_base64(text: bytes) -> bytes | None:
    """Decode base64 as nginx does, ``None`` if it is none.

    Everything from the first ``=`` on is ignored, padding is optional, and
    the empty string is the empty string.
    """
    try:
        return a2b_base64(text, strict_mode=True)
    except NotBase64:
        return _decoded_leniently(text)


def _decoded_leniently(text: bytes) -> bytes | None:
    digits = text.partition(b"=")[0]
    try:
        return a2b_base64(digits + _PADDING[len(digits) & 3], strict_mode=True)
    except NotBase64:
        return None


def is_unsafe(data: bytes) -> bool:
    """Whether a login or password holds CR, LF or NUL, which no upstream is to see."""
    return _CR in data or _LF in data or _NUL in data


def authenticate(
    arguments: Sequence[bytes],
    *,
    framing: Framing,
    reader: LineReader,
    enabled: frozenset[AuthMethod],
    challenge: Callable[[], ProtocolGenerator[bytes]],
    budget: int | None = None,
) -> ProtocolGenerator[Credentials | SaslFailure]:
    """Carry on one SASL exchange, from the words after AUTH to the credentials.

    Args:
        arguments: The mechanism, and the initial response if there is one.
        framing: How this protocol asks.
        reader: Where the response lines come from.
        enabled: ``imap_auth``, ``pop3_auth`` or ``smtp_auth``.  PLAIN and LOGIN work regardless.
        challenge: Gives the session's ``<R.T@NAME>``, which stays the same for all its attempts.
        budget: The bytes that all response lines together may take (IMAP,
            where they share the command's buffer); ``None`` limits each alone.

    Raises:
        LineTooLong: A response line, or all of them, exceeded the limit.
    """
    method = find_mechanism(arguments)
    if method is None or len(arguments) > 2:
        return SaslFailure(None, None, ProtocolErrorKind.BAD_ARGUMENTS)
    needed = _ON_DEMAND.get(method)
    if needed is not None and needed not in enabled:
        return SaslFailure(method, LoginResult.METHOD_DISABLED)
    exchange = _Exchange(framing, reader, method, None if budget is None else reader.consumed + budget)
    initial = arguments[1] if len(arguments) == 2 else None
    if method is Method.CRAM_MD5:
        return (yield from _cram_md5(exchange, initial, challenge))
    if method is Method.LOGIN:
        return (yield from _login(exchange, initial))
    return (yield from _one_response(exchange, initial))


def _one_response(exchange: _Exchange, initial: bytes | None) -> ProtocolGenerator[Credentials | SaslFailure]:
    """PLAIN and EXTERNAL: the client says it all in one response."""
    is_plain = exchange.method is _PLAIN
    prompt = exchange.framing.empty if is_plain else exchange.framing.user
    response = yield from _response(exchange, initial, prompt)
    if isinstance(response, SaslFailure):
        return response
    return _plain(response) if is_plain else _checked(Credentials(Method.EXTERNAL, response))


def _login(exchange: _Exchange, initial: bytes | None) -> ProtocolGenerator[Credentials | SaslFailure]:
    """The LOGIN mechanism: user name, then password, each in a response of its own."""
    user = yield from _response(exchange, initial, exchange.framing.user)
    if isinstance(user, SaslFailure):
        return user
    password = yield from _response(exchange, None, exchange.framing.password)
    if isinstance(password, SaslFailure):
        return password
    return _checked(Credentials(Method.LOGIN, user, Secret(password)))


def _cram_md5(
    exchange: _Exchange, initial: bytes | None, challenge: Callable[[], ProtocolGenerator[bytes]]
) -> ProtocolGenerator[Credentials | SaslFailure]:
    """CRAM-MD5 (RFC 2195): the server speaks first, so there is no initial response."""
    if initial is not None:
        return _malformed(Method.CRAM_MD5, ProtocolErrorKind.BAD_ARGUMENTS)
    salt = yield from challenge()
    response = yield from _response(exchange, None, exchange.framing.challenge(salt))
    if isinstance(response, SaslFailure):
        return response
    user, _, digest = response.partition(b" ")
    if len(digest) != _DIGEST_LENGTH:
        return _malformed(Method.CRAM_MD5, ProtocolErrorKind.BAD_ARGUMENTS)
    return _checked(Credentials(Method.CRAM_MD5, user, Secret(digest), salt))


def parse_plain(response: bytes) -> Credentials | SaslFailure:
    """Read the whole of PLAIN: the response as the client wrote it, in base64."""
    message = decode_base64(response)
    if message is None:
        return _malformed(_PLAIN, ProtocolErrorKind.BASE64_INVALID)
    return _plain(message)


def _plain(message: bytes) -> Credentials | SaslFailure:
    """PLAIN (RFC 4616): ``authzid NUL authcid NUL passwd``; the authzid is ignored."""
    parts = message.split(b"\0", 2)
    if len(parts) < 3:
        return _malformed(_PLAIN, ProtocolErrorKind.BAD_ARGUMENTS)
    _, user, password = parts
    if is_unsafe(user + password):
        return _malformed(_PLAIN, ProtocolErrorKind.CONTROL_CHAR)
    return Credentials(_PLAIN, user, Secret(password))


def _response(
    exchange: _Exchange, initial: bytes | None, prompt: bytes
) -> ProtocolGenerator[bytes | SaslFailure]:
    """The decoded response: the one that came with the command, or the next line's first word.

    No command is recognised here, and the words behind the first are ignored,
    up to as many as a command could have.
    """
    if initial is None:
        yield from send(prompt)
        limit = None if exchange.end is None else exchange.end - exchange.reader.consumed
        line = yield from exchange.reader.line(limit)
        if _CR in line:
            return _malformed(exchange.method, ProtocolErrorKind.CONTROL_CHAR, counts=True)
        initial, _, others = line.partition(b" ")
        if others and sum(map(bool, others.split(b" "))) >= exchange.framing.words:
            return _malformed(exchange.method, ProtocolErrorKind.BAD_ARGUMENTS, counts=True)
        if line == b"*":
            return SaslFailure(exchange.method, LoginResult.ABORTED)
    response = decode_base64(initial)
    if response is None:
        return _malformed(exchange.method, ProtocolErrorKind.BASE64_INVALID)
    return response


def _checked(credentials: Credentials) -> Credentials | SaslFailure:
    """Let nothing pass that could end a line, or a field, at the service or the upstream."""
    password = credentials.password
    if is_unsafe(credentials.user if password is None else credentials.user + password.reveal()):
        return _malformed(credentials.method, ProtocolErrorKind.CONTROL_CHAR)
    return credentials


def _malformed(method: Method, kind: ProtocolErrorKind, *, counts: bool = False) -> SaslFailure:
    return SaslFailure(method, LoginResult.BAD_CREDENTIALS_SYNTAX, kind, counts)
