# SPDX-License-Identifier: Apache-2.0
"""The reasons of the condition ``GroupsReady``."""

from __future__ import annotations

from mailproxy_operator.reasons import Reason
from mailproxy_operator.reasons.rows import ReasonRow, State

_FALSE: tuple[State, ...] = (("GroupsReady", "False"),)
_UNKNOWN: tuple[State, ...] = (("GroupsReady", "Unknown"),)

GROUPS = (
    ReasonRow(
        reason=Reason.MEMBERS_READY,
        states=(("GroupsReady", "True"),),
        meaning="Every group of `spec.upstreams` that is a Service has a ready member.",
        example="5 of 6 members of Services are ready",
    ),
    ReasonRow(
        reason=Reason.NO_READY_MEMBERS,
        states=_FALSE,
        meaning="A Service has no endpoint that is ready, so its logins get a temporary failure.",
        action="See why its pods are not ready, and whether the selector of the Service matches them.",
        example=(
            "upstream dovecot: Service mail/dovecot has no ready endpoint (1 that are not ready): logins get "
            "a temporary failure"
        ),
    ),
    ReasonRow(
        reason=Reason.SERVICE_NOT_FOUND,
        states=_FALSE,
        meaning="A Service of `spec.upstreams` does not exist.",
        action="Correct `service.name` or `service.namespace`, or create the Service.",
        example="upstream dovecot: Service mail/dovecot does not exist",
    ),
    ReasonRow(
        reason=Reason.PORT_NOT_FOUND,
        states=_FALSE,
        meaning=(
            "A Service does not have the port that logins of a route go to, or none of the ports of the "
            "servers whose authentication service or table may name it."
        ),
        action="Set `service.port` to a port of the Service, by number or name.",
        example=(
            "upstream dovecot: Service mail/dovecot has no TCP port 143 (it has 1143 imap): set "
            "service.port, or add the port"
        ),
    ),
    ReasonRow(
        reason=Reason.TOO_MANY_MEMBERS,
        states=_FALSE,
        meaning="A Service has more than 1000 members, or the lists of all groups have more than 1 MB.",
        action="Divide the mail servers among several Services, or the groups among several resources.",
        example="upstream dovecot: Service mail/dovecot has 1200 members; only 1000 get logins",
    ),
    ReasonRow(
        reason=Reason.ENDPOINTS_FORBIDDEN,
        states=_UNKNOWN,
        meaning=(
            "The operator may not read the EndpointSlices of a Service. Logins go to the members before, or "
            "to the DNS name of the Service; with `hash: User` they get a temporary failure."
        ),
        action=(
            "Let the operator read `services` and `endpointslices` in that namespace (`watchNamespaces` of "
            "the chart)."
        ),
        example=(
            "Service other/dovecot: the list of endpointslices: endpointslices.discovery.k8s.io is "
            "forbidden; give the operator this permission in the namespace of the Service"
        ),
    ),
    ReasonRow(
        reason=Reason.ENDPOINTS_UNKNOWN,
        states=_UNKNOWN,
        meaning="The EndpointSlices of a Service could not be read yet. The operator tries again.",
        action="Read the message: it has the error of the API server.",
        example="Service mail/dovecot: GET /apis/discovery.k8s.io/v1/namespaces/mail/endpointslices: timeout",
        is_transient=True,
    ),
)
"""The rows in the order of the page."""
