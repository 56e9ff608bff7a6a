# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: the services that the proxy uses: authentication, mail servers, TLS, DNS."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import (
    AUTH_CACHE_EVENTS,
    AUTH_ERRORS,
    AUTH_OUTCOMES,
    DIRECTIONS,
    DNS_PURPOSES,
    DNS_RESULTS,
    DNS_TIMEOUTS,
    GROUP_LOGINS,
    JWKS_RESULTS,
    MEMBER_STATES,
    PASSWORD_FINDINGS,
    QUANTILES,
    RESUMED,
    TLS_FAILURES,
    TLS_MODES,
    TOKEN_FINDINGS,
    TOKEN_RESULTS,
    UPSTREAM_STAGES,
    UPSTREAM_TLS_FAILURES,
    UPSTREAM_TRIES,
)
from mailproxy_monitoring.grafana import EVENTS_PER_SECOND, Panel, Row
from mailproxy_monitoring.queries import FILTER, FROM_CACHE, JOB, quantile, rate

AUTHENTICATION: Final = Row(
    "Authentication service",
    (
        Panel(
            title="Requests by outcome",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_auth_request_duration_seconds_count", "outcome"), "{{outcome}}"),),
            colours=AUTH_OUTCOMES,
            description="denied and wait: responses of the service. error and timeout: no usable response.",
        ),
        Panel(
            title="Request duration",
            unit="s",
            width=6,
            queries=tuple(
                (quantile(share, "mailproxy_auth_request_duration_seconds"), name)
                for share, name in ((0.5, "median"), (0.9, "90 %"), (0.99, "99 %"))
            ),
            colours=QUANTILES,
            description="From connecting to the end of the response's header.",
            alerts=("MailProxyAuthSlow",),
        ),
        Panel(
            title="Requests in flight",
            width=6,
            queries=((f"sum (mailproxy_auth_requests_in_flight{{{JOB}}})", "in flight"),),
            description="Requests without a response yet. A growing number: the service is too slow.",
        ),
        Panel(
            title="Errors by reason",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_auth_errors_total", "reason", JOB), "{{reason}}"),),
            colours=AUTH_ERRORS,
            description="Requests without a usable response.",
            alerts=("MailProxyAuthErrors",),
        ),
        Panel(
            title="Cache of decisions",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=12,
            queries=((rate("mailproxy_auth_cache_events_total", "event", JOB), "{{event}}"),),
            colours=AUTH_CACHE_EVENTS,
            description="With authCache. stale: an expired entry was used because the service fails.",
        ),
        Panel(
            title="Entries of the cache",
            width=6,
            queries=((f"sum (mailproxy_auth_cache_entries{{{JOB}}})", "entries"),),
            description="Decisions that are kept, in all workers.",
        ),
        Panel(
            title="Memory of the cache",
            unit="bytes",
            width=6,
            queries=((f"sum (mailproxy_auth_cache_bytes{{{JOB}}})", "memory"),),
            description="Memory of these entries. At the limit, the size of authCache, entries are evicted.",
        ),
    ),
)

UPSTREAMS: Final = Row(
    "Mail servers",
    (
        Panel(
            title="Time to connect",
            unit="s",
            width=6,
            queries=tuple(
                (quantile(share, "mailproxy_upstream_connect_duration_seconds"), name)
                for share, name in ((0.5, "median"), (0.99, "99 %"))
            ),
            colours=QUANTILES,
            description="Duration of TCP connects to the mail servers.",
        ),
        Panel(
            title="Errors by stage",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_upstream_errors_total", "stage"), "{{stage}}"),),
            colours=UPSTREAM_STAGES,
            description="The step of the login that failed; login includes wrong passwords.",
            alerts=("MailProxyUpstreamErrors",),
        ),
        Panel(
            title="TLS failures by reason",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_upstream_tls_failures_total", "reason"), "{{reason}}"),),
            colours=UPSTREAM_TLS_FAILURES,
            description="Logins that failed because TLS with the mail server could not be started.",
            alerts=("MailProxyUpstreamTlsFails",),
        ),
        Panel(
            title="Tries by result",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_upstream_tries_total", "result"), "{{result}}"),),
            colours=UPSTREAM_TRIES,
            description="With proxyNextUpstream or several addresses. next: another try followed.",
            alerts=("MailProxyUpstreamFailsOver",),
        ),
        Panel(
            title="Unhealthy addresses",
            width=6,
            queries=(
                (f"max (mailproxy_upstream_unhealthy{{{JOB}}})", "addresses in one pod"),
                (f"max (mailproxy_route_tables_refused{{{JOB}}})", "tables of routes"),
                (f"max (mailproxy_member_lists_refused{{{JOB}}})", "lists of members"),
            ),
            description="Addresses that failed three times in a row: tried last. Files that are invalid.",
            alerts=("MailProxyUpstreamFailsOver", "MailProxyRouteTableRefused"),
        ),
        Panel(
            title="Relayed bytes",
            unit="Bps",
            width=6,
            queries=((rate("mailproxy_relayed_bytes_total", "direction"), "{{direction}}"),),
            colours=DIRECTIONS,
            description="Bytes per second after login.",
        ),
        Panel(
            title="Configuration errors by stage",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=8,
            queries=((rate("mailproxy_upstream_config_errors_total", "stage"), "{{stage}}"),),
            colours=UPSTREAM_STAGES,
            description="Logins that fail until a configuration is changed; tls includes certificates.",
            alerts=("MailProxyUpstreamMisconfigured",),
        ),
        Panel(
            title="TLS handshake time, 99th percentile",
            unit="s",
            width=8,
            queries=tuple(
                (
                    quantile(
                        0.99,
                        "mailproxy_upstream_tls_handshake_seconds",
                        where=f'{FILTER}, resumed="{value}"',
                    ),
                    name,
                )
                for value, name in (("true", "resumed"), ("false", "complete"))
            ),
            colours=RESUMED,
            description="Handshakes with mail servers, with proxySsl.",
        ),
        Panel(
            title="Time to expiry of certificates",
            unit="s",
            width=8,
            queries=(
                (
                    "min by (server) (mailproxy_upstream_certificate_expiry_timestamp_seconds"
                    f"{{{JOB}}}) - time()",
                    "{{server}}",
                ),
            ),
            description="The earliest expiry of a certificate that a mail server has sent, by server block.",
            alerts=("MailProxyUpstreamCertificateExpires",),
        ),
        Panel(
            title="Ready members of Services",
            width=8,
            queries=((f'min by (group) (mailproxy_group_members{{{JOB}, state="Ready"}})', "{{group}}"),),
            description="Mail servers of each Service in spec.upstreams, in the pod that has the fewest.",
            alerts=("MailProxyNoReadyMembers",),
        ),
        Panel(
            title="Members of Services by state",
            stacked=True,
            width=8,
            queries=(
                (f"sum by (state) (max by (group, state) (mailproxy_group_members{{{JOB}}}))", "{{state}}"),
            ),
            colours=MEMBER_STATES,
            description="Draining: the pod terminates. Gone: it has vanished, and is kept for memberGrace.",
        ),
        Panel(
            title="Logins to Services by member",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=8,
            queries=((rate("mailproxy_group_logins_total", "result", JOB), "{{result}}"),),
            colours=GROUP_LOGINS,
            description="unavailable: the member of the login is not ready, so it got a temporary failure.",
        ),
    ),
)

TOKENS: Final = Row(
    "Access tokens",
    (
        Panel(
            title="Validations by result",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=8,
            queries=((rate("mailproxy_oauth_validations_total", "result", JOB), "{{result}}"),),
            colours=TOKEN_FINDINGS,
            description="With authMode Jwt. unavailable: the keys of the issuer cannot be fetched.",
            alerts=("MailProxyTokenKeysUnavailable",),
        ),
        Panel(
            title="Requests for keys by result",
            stacked=True,
            unit="reqps",
            width=8,
            queries=((rate("mailproxy_oauth_jwks_fetches_total", "result", JOB), "{{result}}"),),
            colours=JWKS_RESULTS,
            description="Requests of the workers for the keys of token issuers.",
            alerts=("MailProxyTokenKeysUnavailable",),
        ),
        Panel(
            title="Token requests",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=8,
            queries=((rate("mailproxy_token_requests_total", "result"), "{{result}}"),),
            colours=TOKEN_RESULTS,
            description="Requests to token services (proxyAuthToken), by their result.",
            alerts=("MailProxyTokenRequestsFail",),
        ),
    ),
)

PASSWORDS: Final = Row(
    "Passwords",
    (
        Panel(
            title="Verifications by result",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=8,
            queries=((rate("mailproxy_password_verifications_total", "result", JOB), "{{result}}"),),
            colours=PASSWORD_FINDINGS,
            description="With authMode Static. queue_full: logins that are asked to try again later.",
        ),
        Panel(
            title="Busy threads",
            width=8,
            queries=((rate("mailproxy_password_verification_duration_seconds_sum", where=JOB), "threads"),),
            description="Threads that verify passwords, on average. A worker has two.",
        ),
        Panel(
            title="Queue, refused files",
            width=8,
            queries=(
                (f"max (mailproxy_password_verifications_pending{{{JOB}}})", "passwords in one pod"),
                (f"max (mailproxy_user_files_refused{{{JOB}}})", "files of users"),
            ),
            description="Passwords that wait or are verified. Files of users with invalid lines.",
            alerts=("MailProxyUserListRefused",),
        ),
    ),
)

TLS: Final = Row(
    "TLS",
    (
        Panel(
            title="Handshakes by version and mode",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_tls_handshakes_total", "version, mode", JOB), "{{version}} {{mode}}"),),
            description="Completed handshakes with clients.",
        ),
        Panel(
            title="Handshake failures by reason",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_tls_handshake_failures_total", "reason", JOB), "{{reason}}"),),
            colours=TLS_FAILURES,
            description="not_tls: a client uses a TLS port without TLS.",
        ),
        Panel(
            title="Resumed handshakes",
            unit="percentunit",
            maximum=1,
            width=6,
            queries=(
                (
                    f"{rate('mailproxy_tls_sessions_resumed_total', where=JOB)}"
                    f" / {rate('mailproxy_tls_handshakes_total', where=JOB)}",
                    "of all handshakes",
                ),
            ),
            description="Resumed handshakes need little CPU.",
        ),
        Panel(
            title="Handshake time, 99th percentile",
            unit="s",
            width=6,
            queries=((quantile(0.99, "mailproxy_tls_handshake_duration_seconds", "mode", JOB), "{{mode}}"),),
            colours=TLS_MODES,
            description="Includes the round trips of the network.",
        ),
    ),
)

DNS: Final = Row(
    "DNS",
    (
        Panel(
            title="Queries by result",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_dns_queries_total", "result", JOB), "{{result}}"),),
            colours=DNS_RESULTS,
            description="Queries to name servers, for names of clients and of the authentication service.",
        ),
        Panel(
            title="Timeouts by purpose",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_dns_timeouts_total", "purpose", JOB), "{{purpose}}"),),
            colours=DNS_TIMEOUTS,
            description="ptr and forward delay SMTP greetings; auth stops logins.",
            alerts=("MailProxyDnsTimeouts",),
        ),
        Panel(
            title="Query time, 99th percentile",
            unit="s",
            width=6,
            queries=(
                (quantile(0.99, "mailproxy_dns_query_duration_seconds", "purpose", JOB), "{{purpose}}"),
            ),
            colours=DNS_PURPOSES,
            description="Of the queries that got a response.",
        ),
        Panel(
            title="Cache hits",
            unit="percentunit",
            maximum=1,
            width=6,
            queries=(
                (
                    f"{rate('mailproxy_dns_cache_requests_total', where=FROM_CACHE)}"
                    f" / {rate('mailproxy_dns_cache_requests_total', where=JOB)}",
                    "of all lookups",
                ),
            ),
            description="The share of lookups that were answered from the cache, without a query.",
        ),
    ),
)
