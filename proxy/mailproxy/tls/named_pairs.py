# SPDX-License-Identifier: Apache-2.0
"""Certificates that clients choose by name: read into memory, checked, and indexed by name.

They are kept in memory, so that a certificate whose files become invalid keeps its last good
version, and so that the context for a name can be built when the first client asks for it.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailproxy.protocols.types import Secret
from mailproxy.tls.inputs import selected
from mailproxy.tls.key_pairs import dns_names, expiry, key_type, parse_certificate
from mailproxy.tls.openssl import OpenSsl, reason_of
from mailproxy_config.errors import Problem
from mailproxy_config.model import CertificateFiles, ServerConfig
from mailproxy_config.server_names import parse_server_name

MAX_SELECTED: Final = 10_000
"""Maximum number of certificates below the directory of ``ssl_certificate_selector``."""
MAX_NAMES: Final = 1000
"""Maximum number of names that are used of one certificate."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""Maximum size of a certificate or key, that of a Secret."""


class PairUnusable(Exception):
    """A certificate or its key cannot be loaded; the message is the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedPair:
    """A certificate with its key.

    Attributes:
        files: Where it was read.
        names: The names that it is used for, in lower case.
        is_explicit: Whether these are configured; otherwise they are its DNS names.
        key_type: OpenSSL's number for the type of its key (``EVP_PKEY_get_base_id``).
        not_after: When it expires, in seconds since 1970; ``None`` for a malformed date.
        digest: Of both files.
        pem: Both files.
    """

    files: CertificateFiles
    names: tuple[str, ...]
    is_explicit: bool
    key_type: int
    not_after: float | None
    digest: bytes
    pem: Secret


@dataclass(frozen=True, slots=True, eq=False)
class CertificateTable:
    """The certificates of a server by name.

    Attributes:
        names: The certificates of each name, at most one for each type of key.
        default: The certificates for clients that choose none.
        pairs: All certificates, by the path of the certificate.
        problems: Why certificates are not used, or not for all of their names.
    """

    names: Mapping[str, tuple[NamedPair, ...]]
    default: tuple[NamedPair, ...]
    pairs: Mapping[str, NamedPair]
    problems: tuple[Problem, ...]

    @property
    def first_expiry(self) -> float | None:
        """When the first of the certificates besides the default ones expires, in seconds since 1970."""
        others = (pair for pair in self.pairs.values() if pair not in self.default)
        return min((pair.not_after for pair in others if pair.not_after is not None), default=None)


class PairLoader:
    """Reads and checks pairs.

    Args:
        native: The library.
        context: A context with the server's ciphers, hence with its minimum of key sizes; its
            certificates are replaced.
        passphrases: Of encrypted keys.
        is_checked: Whether another process has loaded all pairs.  Then a key is not loaded before it is
            used, unless the pair has changed: loading it takes 1.4 ms of CPU time with OpenSSL 3.0.
    """

    def __init__(
        self, native: OpenSsl, context: ssl.SSLContext, passphrases: Sequence[Secret], *, is_checked: bool
    ) -> None:
        self._native = native
        self._context = context
        self._passphrases = passphrases
        self._is_checked = is_checked

    def read(self, files: CertificateFiles, before: NamedPair | None) -> NamedPair:
        """Read a pair; ``before`` is returned if nothing has changed.

        Raises:
            PairUnusable: It cannot be loaded, or has no name.
        """
        certificate, key = _read(files.certificate), _read(files.key)
        digest = hashlib.sha256(hashlib.sha256(certificate).digest() + key).digest()
        if before is not None and before.digest == digest and before.files == files:
            return before
        pem = Secret(certificate + b"\n" + key)
        native, parsed = self._native, None
        if self._is_checked and before is None:
            parsed = parse_certificate(native, certificate)
        if parsed is None:
            load_pem(self._context, pem, self._passphrases)
        x509 = parsed or native.lib.SSL_CTX_get0_certificate(native.context(self._context))
        try:
            names = files.server_names or _usable(dns_names(native, x509))
            facts = key_type(native, x509), expiry(native, x509)
        finally:
            if parsed is not None:
                native.lib.X509_free(parsed)
        if not names:
            raise PairUnusable("the certificate has no DNS names: set serverNames")
        return NamedPair(files, names, bool(files.server_names), *facts, digest, pem)


def load_pem(context: ssl.SSLContext, pem: Secret, passphrases: Sequence[Secret]) -> None:
    """Load a certificate with its key from memory.

    Raises:
        PairUnusable: That fails.
    """
    # ``ssl`` loads files only; this one is in memory and has no name
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem.reveal())
        path = f"/proc/self/fd/{descriptor}"
        for passphrase in passphrases or [Secret(b"")]:
            try:
                context.load_cert_chain(path, password=passphrase.reveal)
            except ssl.SSLError as error:
                reason = reason_of(error).replace("_", " ").lower()
            except (ValueError, OSError) as error:
                reason = str(error)
            else:
                return
        raise PairUnusable(reason)
    finally:
        os.close(descriptor)


def read_table(server: ServerConfig, loader: PairLoader, before: CertificateTable | None) -> CertificateTable:
    """Read all certificates of a server; those that cannot be loaded keep their last good version.

    Args:
        server: A server with ``chooses_certificates``.
        loader: Reads the pairs.
        before: The table before a reload.
    """
    known = before.pairs if before is not None else {}
    problems: list[Problem] = []
    pairs: dict[str, NamedPair] = {}
    default: list[NamedPair] = []
    needed = {pair.certificate for pair in server.default_certificates}
    for place, files in _sources(server, problems):
        last = known.get(files.certificate)
        try:
            pair = loader.read(files, last)
        except PairUnusable as unusable:
            kept = "; the last good one is used" if last is not None else ""
            reason = f'cannot load certificate "{files.certificate}" with key "{files.key}": {unusable}{kept}'
            problems.append(Problem(f"servers[{server.name}].{place}", reason))
            if last is None:
                continue
            pair = last
        pairs[files.certificate] = pair
        if files.certificate in needed:
            default.append(pair)
    names = _index(pairs.values(), f"servers[{server.name}]", problems)
    return CertificateTable(names, tuple(default), pairs, tuple(problems))


def _sources(server: ServerConfig, problems: list[Problem]) -> Iterator[tuple[str, CertificateFiles]]:
    """Yield every pair with its place in the configuration, in the order of precedence."""
    for position, pair in enumerate(server.ssl_certificate):
        yield f"ssl_certificate[{position}]", pair
    directory = server.ssl_certificate_selector
    if directory is None:
        return
    found = selected(directory)
    if len(found) > MAX_SELECTED:
        reason = f"{len(found)} certificates, of which the first {MAX_SELECTED} are used"
        problems.append(Problem(f"servers[{server.name}].ssl_certificate_selector", reason))
    for files in found[:MAX_SELECTED]:
        yield "ssl_certificate_selector", files


@dataclass(slots=True)
class _Index:
    place: str
    problems: list[Problem]
    names: dict[str, list[NamedPair]] = field(default_factory=dict)

    def add(self, pair: NamedPair) -> None:
        """Use a pair for its names, unless they are taken."""
        lost: list[tuple[str, NamedPair]] = []
        for name in pair.names:
            others = self.names.setdefault(name, [])
            taken = next((other for other in others if other.key_type == pair.key_type), None)
            if taken is None:
                others.append(pair)
            elif taken.is_explicit == pair.is_explicit:
                lost.append((name, taken))
        if lost:
            name, taken = lost[0]
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            reason = (
                f'certificate "{pair.files.certificate}" is not used for {name}{more}: '
                f'"{taken.files.certificate}" comes first'
            )
            self.problems.append(Problem(f"{self.place}.ssl_certificate", reason))


def _index(
    pairs: Iterable[NamedPair], place: str, problems: list[Problem]
) -> dict[str, tuple[NamedPair, ...]]:
    """Index pairs by name: those with configured names first, then in their order."""
    index = _Index(place, problems)
    for pair in sorted(pairs, key=lambda pair: not pair.is_explicit):
        index.add(pair)
    shared: dict[tuple[int, ...], tuple[NamedPair, ...]] = {}
    return {
        name: shared.setdefault(tuple(map(id, found)), tuple(found)) for name, found in index.names.items()
    }


def _usable(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a certificate that a client can ask for."""
    found: dict[str, None] = {}
    for name in names:
        try:
            found[parse_server_name(name)] = None
        except ValueError:
            continue
        if len(found) == MAX_NAMES:
            break
    return tuple(found)


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PairUnusable(f'"{path}": {error.strerror or error}') from None
    if content is None or len(content) > MAX_FILE_BYTES:
        raise PairUnusable(f'"{path}" has more than {MAX_FILE_BYTES} bytes')
    return content
