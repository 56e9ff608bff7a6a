# SPDX-License-Identifier: Apache-2.0
"""Which certificates of a server clients choose by name, and which are those for all others."""

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
