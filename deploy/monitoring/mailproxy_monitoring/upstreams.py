# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: the services that the proxy uses: authentication, mail servers, TLS, DNS."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import FROM_CACHE, JOB, quantile, rate

AUTHENTICATION: Final = Row(
    "Authentication service",
    (
        Panel(
            title="Requests, by outcome",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_auth_request_duration_seconds_count", "outcome"), "{{outcome}}"),),
            help="denied and wait are responses of the service; error and timeout: there was none.",
        ),
        Panel(
            title="Latency",
            unit="s",
            width=6,
            queries=tuple(
                (quantile(share, "mailproxy_auth_request_duration_seconds"), name)
                for share, name in ((0.5, "median"), (0.9, "90 %"), (0.99, "99 %"))
            ),
            help="From connecting to the end of the response's header.",
        ),
        Panel(
            title="Requests in flight",
            width=6,
            queries=((f"sum (mailproxy_auth_requests_in_flight{{{JOB}}})", "in flight"),),
            help="A growing number: the service is too slow.",
        ),
        Panel(
            title="Errors, by reason",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_auth_errors_total", "reason", JOB), "{{reason}}"),),
            help="Requests without a usable response.",
        ),
    ),
)

UPSTREAMS: Final = Row(
    "Mail servers",
    (
        Panel(
            title="Time to connect",
            unit="s",
            queries=tuple(
                (quantile(share, "mailproxy_upstream_connect_duration_seconds"), name)
                for share, name in ((0.5, "median"), (0.99, "99 %"))
            ),
            help="TCP to the mail servers.",
        ),
        Panel(
            title="Errors, by stage",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_upstream_errors_total", "stage"), "{{stage}}"),),
            help="The step of the login that failed; login includes wrong passwords.",
        ),
        Panel(
            title="Relayed",
            unit="Bps",
            queries=((rate("mailproxy_relayed_bytes_total", "direction"), "{{direction}}"),),
            help="Bytes per second after login.",
        ),
    ),
)

TLS: Final = Row(
    "TLS",
    (
        Panel(
            title="Handshakes, by version and mode",
            stacked=True,
            unit="ops",
            width=6,
            queries=((rate("mailproxy_tls_handshakes_total", "version, mode", JOB), "{{version}} {{mode}}"),),
            help="Completed ones.",
        ),
        Panel(
            title="Failures, by reason",
            stacked=True,
            unit="ops",
            width=6,
            queries=((rate("mailproxy_tls_handshake_failures_total", "reason", JOB), "{{reason}}"),),
            help="not_tls: a client uses a TLS port without TLS.",
        ),
        Panel(
            title="Resumed",
            unit="percentunit",
            width=6,
            queries=(
                (
                    f"{rate('mailproxy_tls_sessions_resumed_total', where=JOB)}"
                    f" / {rate('mailproxy_tls_handshakes_total', where=JOB)}",
                    "of all handshakes",
                ),
            ),
            help="Resumed handshakes cost little CPU.",
        ),
        Panel(
            title="Handshake time, 99th percentile",
            unit="s",
            width=6,
            queries=((quantile(0.99, "mailproxy_tls_handshake_duration_seconds", "mode", JOB), "{{mode}}"),),
            help="Includes the network's round trips.",
        ),
    ),
)

DNS: Final = Row(
    "DNS",
    (
        Panel(
            title="DNS queries sent, by result",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_dns_queries_total", "result", JOB), "{{result}}"),),
            help="Lookups of client names and of the host name of the authentication service.",
        ),
        Panel(
            title="Time-outs, by purpose",
            stacked=True,
            unit="reqps",
            width=6,
            queries=((rate("mailproxy_dns_timeouts_total", "purpose", JOB), "{{purpose}}"),),
            help="ptr and forward delay SMTP greetings; auth stops logins.",
        ),
        Panel(
            title="Time to an answer, 99th percentile",
            unit="s",
            width=6,
            queries=(
                (quantile(0.99, "mailproxy_dns_query_duration_seconds", "purpose", JOB), "{{purpose}}"),
            ),
            help="Of the queries that got a response.",
        ),
        Panel(
            title="Answered from the cache",
            unit="percentunit",
            width=6,
            queries=(
                (
                    f"{rate('mailproxy_dns_cache_requests_total', where=FROM_CACHE)}"
                    f" / {rate('mailproxy_dns_cache_requests_total', where=JOB)}",
                    "of all look-ups",
                ),
            ),
            help="",
        ),
    ),
)
