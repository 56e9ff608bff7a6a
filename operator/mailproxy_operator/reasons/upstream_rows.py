# SPDX-License-Identifier: Apache-2.0
"""The reasons of the condition ``UpstreamTLSReady``."""

from __future__ import annotations

from mailproxy_operator.reasons import Reason
from mailproxy_operator.reasons.rows import ReasonRow, State

_NO_TLS: tuple[State, ...] = (("UpstreamTLSReady", "False"),)

UPSTREAM_TLS = (
    ReasonRow(
        reason=Reason.UPSTREAM_TLS_ESTABLISHED,
        states=(("UpstreamTLSReady", "True"),),
        meaning="Pods connect to mail servers with TLS, and no login has failed for TLS lately.",
        example="TLS with mail servers is established, and no login has failed for it in the last 5 minutes",
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_CERTIFICATE_EXPIRING,
        states=(("UpstreamTLSReady", "True"),),
        meaning="A certificate that a mail server has sent expires in less than 7 days.",
        action="Renew the certificate at the mail server.",
        example=(
            "server imap: a certificate of its mail servers expires on 2026-01-04 12:00 UTC; renew it at "
            "the mail server"
        ),
    ),
    ReasonRow(
        reason=Reason.NO_UPSTREAM_TLS_YET,
        states=(("UpstreamTLSReady", "Unknown"),),
        meaning="Since the pods have started, no client has logged in, so no mail server was connected to.",
        action="Log in once, for a test.",
        example="no pod has connected to a mail server with TLS yet",
        is_transient=True,
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_NAME_MISMATCH,
        states=_NO_TLS,
        meaning="The certificate of a mail server does not have the name that is expected.",
        action="Set `proxySslName` to one of the names in the message.",
        example=(
            'server imap: 192.0.2.7:993: certificate not accepted: "192.0.2.7" is not among its names '
            "(DNS:imap.example.com): set proxySslName (pod edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_CERTIFICATE_NOT_TRUSTED,
        states=_NO_TLS,
        meaning="The authority of a certificate is unknown, it is revoked, or its chain is too long.",
        action=(
            "Set `proxySslTrustedCertificate`, or install the complete chain at the mail server; see "
            "`proxySslVerifyDepth`."
        ),
        example=(
            "server imap: 192.0.2.7:993: certificate not accepted: unable to get local issuer certificate "
            "(its names: DNS:imap.example.com): set proxySslTrustedCertificate (pod edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_CERTIFICATE_EXPIRED,
        states=_NO_TLS,
        meaning="The certificate of a mail server is not valid any more, or not yet.",
        action="Renew the certificate at the mail server; check the clocks.",
        example=(
            "server imap: 192.0.2.7:993: certificate not accepted: certificate has expired (pod "
            "edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_TLS_NOT_OFFERED,
        states=_NO_TLS,
        meaning="With `proxySsl: Starttls`, a mail server does not offer STARTTLS, or refuses it.",
        action="Turn STARTTLS on in the mail server, or set `proxySsl: Enabled` with its TLS port.",
        example=(
            "server imap: 192.0.2.7:143: upstream does not offer STARTTLS: set proxySsl to Enabled or "
            "Disabled, or the port in Auth-Server (pod edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_BYTES_INJECTED,
        states=_NO_TLS,
        meaning="Bytes in clear text came where TLS should begin.",
        action="Find out who changes the connection between proxy and mail server.",
        example=(
            "server imap: 192.0.2.7:143: upstream sent bytes in clear text after its reply to STARTTLS "
            "(pod edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_TLS_INCOMPATIBLE,
        states=_NO_TLS,
        meaning="A mail server does not use TLS on this port, or has no version and cipher in common.",
        action="Use `proxySsl: Enabled` only for TLS ports; see `proxySslProtocols`, `proxySslCiphers`.",
        example=(
            "server imap: 192.0.2.7:143: TLS handshake failed: wrong version number (pod edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_TLS_REFUSED,
        states=_NO_TLS,
        meaning="A mail server ended the TLS handshake.",
        action="Read its log: it may require a client certificate (`proxySslCertificate`).",
        example=(
            "server imap: 192.0.2.7:993: TLS handshake failed: tlsv13 alert certificate required (pod "
            "edge-6d9c7-x2x)"
        ),
    ),
    ReasonRow(
        reason=Reason.UPSTREAM_TLS_TIMEOUT,
        states=_NO_TLS,
        meaning="A TLS handshake took longer than `timeout`.",
        action="See whether a firewall or load balancer stands between proxy and mail server.",
        example="server imap: 192.0.2.7:993: TLS handshake timed out (pod edge-6d9c7-x2x)",
    ),
)
"""The rows in the order of the page."""
