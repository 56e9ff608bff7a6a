# SPDX-License-Identifier: Apache-2.0
"""Which certificates of a server clients choose by name, which are for all others, and the files of TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy_config.model import CertificateFiles


class CertificateChoice:
    """A part of ``ServerConfig``."""

    __slots__ = ()

    if TYPE_CHECKING:
        ssl_certificate: tuple[CertificateFiles, ...]
        ssl_certificate_selector: str | None
        ssl_reject_handshake: bool
        ssl_session_ticket_key: tuple[str, ...]
        ssl_dhparam: str | None
        ssl_password_file: str | None

        @property
        def tls_is_used(self) -> bool:
            """See ``ServerConfig``."""

        @property
        def client_verification_files(self) -> tuple[tuple[str, str], ...]:
            """See ``ServerConfig``."""

    @property
    def chooses_certificates(self) -> bool:
        """Whether clients choose a certificate by name; otherwise all are used together, as in nginx."""
        return (
            self.ssl_certificate_selector is not None
            or self.ssl_reject_handshake
            or any(pair.server_names is not None for pair in self.ssl_certificate)
        )

    @property
    def default_certificates(self) -> tuple[CertificateFiles, ...]:
        """Certificates for clients that choose none: the first, and those of other key types for it."""
        if not self.chooses_certificates:
            return self.ssl_certificate
        names = self.ssl_certificate[0].server_names if self.ssl_certificate else None
        return tuple(
            pair
            for position, pair in enumerate(self.ssl_certificate)
            if position == 0 or (names and pair.server_names == names)
        )

    @property
    def tls_files(self) -> tuple[tuple[str, str], ...]:
        """Directives and paths of the files that TLS of this server needs; none if it does not use TLS."""
        if not self.tls_is_used:
            return ()
        found: list[tuple[str, str]] = []
        for pair in self.default_certificates:
            found += [("ssl_certificate", pair.certificate), ("ssl_certificate_key", pair.key)]
        found += [("ssl_session_ticket_key", path) for path in self.ssl_session_ticket_key]
        if self.ssl_dhparam is not None:
            found.append(("ssl_dhparam", self.ssl_dhparam))
        if self.ssl_password_file is not None:
            found.append(("ssl_password_file", self.ssl_password_file))
        return (*found, *self.client_verification_files)
