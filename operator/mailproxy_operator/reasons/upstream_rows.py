# SPDX-License-Identifier: Apache-2.0
"""The reasons of the conditions ``UpstreamTLSReady`` and ``RoutesReady``."""

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

_NO_ROUTES: tuple[State, ...] = (("RoutesReady", "False"),)

ROUTES = (
    ReasonRow(
        reason=Reason.ROUTES_LOADED,
        states=(("RoutesReady", "True"),),
        meaning="Every pod uses the newest version of each table of routes and list of users that it has.",
        example="pods use the newest tables of routes and lists of users",
    ),
    ReasonRow(
        reason=Reason.ROUTES_NOT_REPORTED,
        states=(("RoutesReady", "Unknown"),),
        meaning="No pod runs, or the operator does not reach their admin endpoints.",
        action="See `Available` and `ConfigSynced`.",
        example="no pod has reported its configuration yet",
        is_transient=True,
    ),
    ReasonRow(
        reason=Reason.ROUTE_OBJECT_NOT_FOUND,
        states=_NO_ROUTES,
        meaning="The ConfigMap or Secret of a table or list does not exist, so a pod does not start.",
        action="Create it, or correct the field.",
        example=(
            "pod edge-6d9c7-x2x: no ConfigMap moves; create it in the MailProxy's namespace, or correct "
            "spec.mail.routes[0].table.configMapKeyRef"
        ),
    ),
    ReasonRow(
        reason=Reason.ROUTE_KEY_NOT_FOUND,
        states=_NO_ROUTES,
        meaning="The ConfigMap or Secret of a table or list does not have the key.",
        action="Add the key, or correct the field.",
        example=(
            "pod edge-6d9c7-x2x: ConfigMap moves has no key users; add it, or correct "
            "spec.mail.routes[0].table.configMapKeyRef"
        ),
    ),
    ReasonRow(
        reason=Reason.ROUTE_TABLE_REFUSED,
        states=_NO_ROUTES,
        meaning="A table of routes has an invalid line, so pods use its last valid version.",
        action="Correct the line that the message names: [routes.md](../routes.md#tables).",
        example=(
            "pod edge-6d9c7-x2x: ConfigMap moves, key users, line 3: the upstream is not in spec.upstreams "
            "(new, old); correct it (spec.mail.routes[0].table.configMapKeyRef); pods use its last valid "
            "version until then, and load a corrected one without a restart"
        ),
    ),
    ReasonRow(
        reason=Reason.USER_LIST_REFUSED,
        states=_NO_ROUTES,
        meaning="A list of users has an invalid line, so pods use its last valid version.",
        action="Correct the line that the message names: [static-users.md](../static-users.md).",
        example=(
            "pod edge-6d9c7-x2x: Secret users, key htpasswd, line 2: the user is already in line 1: remove "
            "one of the two; correct it (spec.mail.authUserFile.secretKeyRef); pods use its last valid "
            "version until then, and load a corrected one without a restart"
        ),
    ),
)
"""The rows of ``RoutesReady``."""
