# SPDX-License-Identifier: Apache-2.0
"""The parser of transcripts (``tests/dialogues``), for ``dialogue_player`` and ``loopback_player``.

A file begins with text: the behaviour, then its source.  Lines
``name: value`` among it set directives of the server (named as in
``ServerConfig``) and facts about the client: ``client`` and ``local``
(address and port), ``tls: implicit``, ``certificate: none | valid | invalid
TEXT | tolerable TEXT``; ``trusted: yes`` for a client in ``set_real_ip_from``, and
``named`` for the address and host name that it gives itself with
``real_ip_command``.  ``cut: no`` means that the segments matter: the
transcript is not played byte by byte.

The steps are indented: a mark, and its text from the sixth column on.

====  =====================================================================
C     the client sends; ``C+`` the same, in one segment with the next line
S     the proxy sends to the client
P     the proxy sends to the upstream
U     the upstream sends; ``U+`` as above
=     anything that is not bytes, see ``dialogue_player``
====  =====================================================================

Each line ends in CRLF, which is not written.  Escapes: ``\\r \\n \\t \\0 \\s`` (space)
``\\xHH \\\\``; ``\\{130*a}`` repeats; ``\\{b64 a}`` is a in base64; ``\\c`` at the end
leaves out the CRLF.
``#`` in the first column begins a comment.
"""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final

from mailproxy.protocols.types import Client, ClientCertificate, TlsInfo
from mailproxy_config.model import AuthMethod, ImapId, Protocol, ResolverConfig, ServerConfig
from support import configs

ROOT: Final = Path(__file__).parent.parent / "dialogues"

_DIRECTIVE: Final = re.compile(r"([a-z][a-z0-9_]*): (.*)")
_REPEAT: Final = re.compile(r"\\\{(\d+)\*([^{}]*)\}")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|\{b64 ([^}]*)\}|(.))")
_SIMPLE: Final = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "s": b" ", "\\": b"\\", "c": b""}
_DIRECTIVES: Final = frozenset(field.name for field in fields(ServerConfig))
_STEP_MARKS: Final = frozenset(("C", "C+", "S", "P", "U", "U+", "="))


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a transcript: ``data`` are its bytes, empty for ``=``."""

    mark: str
    text: str
    data: bytes
    line: int

    @property
    def is_joined(self) -> bool:
        """Whether it is in one segment with the next line."""
        return self.mark.endswith("+")

    @property
    def side(self) -> str:
        """Its mark without the ``+``."""
        return self.mark[0]

    def __str__(self) -> str:
        return f"{self.line:4}  {self.mark:2} {self.text}"


@dataclass(frozen=True, slots=True)
class Transcript:
    """One behaviour: a client, a server, and the steps of a session."""

    name: str
    description: tuple[str, ...]
    server: ServerConfig
    steps: tuple[Step, ...]
    facts: dict[str, str]

    @property
    def may_be_cut(self) -> bool:
        """Whether it may be played with other segments."""
        return self.facts.get("cut") != "no"

    @property
    def is_trusted(self) -> bool:
        """Whether the client may name another one (``real_ip_command``)."""
        return self.facts.get("trusted") == "yes"

    @property
    def named(self) -> tuple[str, str]:
        """Address and host name that the authentication service gets; empty where they are the client's."""
        address, _, host = self.facts.get("named", "").partition(" ")
        return address, host

    def client(self) -> Client:
        """Make the client that connects; a new one for each run."""
        address, port = _address_and_port(self.facts.get("client", "192.0.2.42 4711"))
        local_address, local_port = _address_and_port(self.facts.get("local", "198.51.100.1 25"))
        client = Client(address, port, local_address, local_port)
        if self.facts.get("tls") == "implicit":
            client.tls = self.tls()
        return client

    def tls(self) -> TlsInfo:
        """Return the result of a handshake with this client."""
        tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
        kind, _, text = self.facts.get("certificate", "none").partition(" ")
        if kind != "none":
            subject = b"CN=client"
            tls.certificate = ClientCertificate(subject, b"CN=ca", b"0A", b"0" * 40, b"PEM", b"client")
        if kind in {"invalid", "tolerable"}:
            tls.verify_code = 18
            tls.verify_error = text.encode()
            tls.verify_is_tolerable = kind == "tolerable"
        return tls


def unescaped(text: str) -> bytes:
    """Return the bytes for a text with escapes."""

    def data(match: re.Match[str]) -> str:
        hexadecimal, encoded, simple = match.groups()
        if hexadecimal is not None:
            return chr(int(hexadecimal, 16))
        if encoded is not None:
            return b64encode(unescaped(encoded)).decode()
        return _SIMPLE[simple].decode("latin-1")

    return _ESCAPE.sub(data, _repeated(text)).encode("latin-1")


def _repeated(text: str) -> str:
    return _REPEAT.sub(lambda match: match[2] * int(match[1]), text)


def escaped(data: bytes) -> str:
    """Format bytes as one word for ``unescaped``; no bytes are ``""``."""
    names = {value: f"\\{name}" for name, value in _SIMPLE.items() if value}
    letters = (names.get(bytes((byte,)), _letter(byte)) for byte in data)
    return "".join(letters) or '""'


def _letter(byte: int) -> str:
    return chr(byte) if 0x21 <= byte < 0x7F else f"\\x{byte:02X}"


def load(path: Path) -> Transcript:
    """Read a transcript; its folder is the protocol.

    Raises:
        ValueError: It is malformed.
    """
    return parse(path.read_text("utf-8").splitlines(), name=f"{path.parent.name}/{path.stem}")


def load_all(protocol: Protocol | None = None) -> list[Transcript]:
    """Read all transcripts, or all of one protocol, in the order of their names."""
    paths = sorted(ROOT.glob(f"{protocol.value if protocol else '*'}/*.dialogue"))
    return [load(path) for path in paths]


def parse(lines: Iterable[str], *, name: str) -> Transcript:
    """Parse the lines of a transcript called ``PROTOCOL/NAME``."""
    description: list[str] = []
    facts: dict[str, str] = {}
    steps: list[Step] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("  "):
            steps.append(_step(line, number))
        elif match := _DIRECTIVE.fullmatch(line):
            facts[match[1]] = match[2]
        elif line and not line.startswith("#"):
            description.append(line)
    if len(description) < 2 or not steps:
        message = f"{name}: has no description, no source, or no steps"
        raise ValueError(message)
    protocol = Protocol(name.partition("/")[0])
    directives = {key: _value(key, facts.pop(key)) for key in sorted(facts) if key in _DIRECTIVES}
    unknown = facts.keys() - {"client", "local", "tls", "certificate", "cut", "trusted", "named"}
    if unknown:
        message = f"{name}: unknown {sorted(unknown)}"
        raise ValueError(message)
    return Transcript(name, tuple(description), configs.server(protocol, **directives), tuple(steps), facts)


def _step(line: str, number: int) -> Step:
    mark, text = line[2:4].strip(), line[5:]
    if mark not in _STEP_MARKS:
        message = f"line {number}: no mark: {line!r}"
        raise ValueError(message)
    if mark == "=":
        return Step(mark, " ".join(_repeated(text).split()), b"", number)
    data = unescaped(text)
    return Step(mark, text, data if text.endswith("\\c") else data + b"\r\n", number)


def _address_and_port(text: str) -> tuple[str, int]:
    address, _, port = text.partition(" ")
    return address, int(port or 0)


def _value(name: str, text: str) -> Any:
    """Parse a directive's value according to the type of its default."""
    if name == "resolver":
        return ResolverConfig(addresses=(text,))
    if name == "imap_id_command":
        return ImapId(text)
    default = getattr(configs.server(Protocol.SMTP), name)
    if isinstance(default, Enum):
        return type(default)(text)
    readers: dict[type, Callable[[str], Any]] = {
        bool: {"on": True, "off": False}.__getitem__,
        int: int,
        float: lambda seconds: float(seconds.removesuffix("s")),
        str: str,
        tuple: lambda words: tuple(shlex.split(words)),
        frozenset: lambda words: frozenset(AuthMethod(word) for word in words.split()),
    }
    return readers[type(default)](text)


def segments(steps: Iterable[Step]) -> Iterator[tuple[Step, bytes]]:
    """Yield the segments: the first step of each, and all its bytes."""
    first: Step | None = None
    data = b""
    for step in steps:
        first = first or step
        data += step.data
        if not step.is_joined:
            yield first, data
            first, data = None, b""
