# SPDX-License-Identifier: Apache-2.0
"""Data on which each alert about a MailProxy fires."""

from __future__ import annotations

from typing import Final

JOB: Final = 'job="mail/edge"'

# alert -> series (name and labels, then values as promtool expands them) on which it fires after 80 minutes
SERIES: Final[dict[str, list[tuple[str, str]]]] = {
    "MailProxyLoginFailures": [
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="timeout"}}', "0+60x90"),
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="success"}}', "0+60x90"),
    ],
    "MailProxyLoginsDenied": [
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="denied"}}', "0+600x90"),
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="success"}}', "0+6x90"),
    ],
    "MailProxyPenaltyRefusesLogins": [
        (f'mailproxy_auth_penalties_total{{{JOB}, action="refused"}}', "0+60x90")
    ],
    "MailProxyAuthSlow": [
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="1"}}', "0+1x90"),
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="5"}}', "0+60x90"),
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="+Inf"}}', "0+60x90"),
    ],
    "MailProxyAuthErrors": [(f'mailproxy_auth_errors_total{{{JOB}, reason="connect"}}', "0+60x90")],
    "MailProxyTokenKeysUnavailable": [
        (f'mailproxy_oauth_jwks_fetches_total{{{JOB}, result="connect"}}', "0+2x90")
    ],
    "MailProxyPolicyServerFails": [
        (f'mailproxy_policy_requests_total{{{JOB}, command="allow", result="timeout"}}', "0+60x90")
    ],
    "MailProxyDnsTimeouts": [(f'mailproxy_dns_timeouts_total{{{JOB}, purpose="ptr"}}', "0+60x90")],
    "MailProxyUpstreamErrors": [
        (f'mailproxy_upstream_errors_total{{{JOB}, protocol="imap", stage="login"}}', "0+60x90"),
        (
            f'mailproxy_upstream_connect_duration_seconds_count{{{JOB}, protocol="imap", result="ok"}}',
            "0+60x90",
        ),
    ],
    "MailProxyUpstreamTlsFails": [
        (f'mailproxy_upstream_tls_failures_total{{{JOB}, protocol="imap", reason="name"}}', "0+60x90")
    ],
    "MailProxyUpstreamMisconfigured": [
        (f'mailproxy_upstream_config_errors_total{{{JOB}, protocol="imap", stage="id"}}', "0+60x90")
    ],
    "MailProxyUpstreamCertificateExpires": [
        (f'mailproxy_upstream_certificate_expiry_timestamp_seconds{{{JOB}, server="imap"}}', "86400x90")
    ],
    "MailProxyUpstreamFailsOver": [
        (f'mailproxy_upstream_tries_total{{{JOB}, protocol="imap", result="next"}}', "0+60x90"),
        (f'mailproxy_upstream_tries_total{{{JOB}, protocol="imap", result="success"}}', "0+60x90"),
    ],
    "MailProxyNoReadyMembers": [
        (f'mailproxy_group_members{{{JOB}, group="dovecot", state="Ready"}}', "0x90"),
        (f'mailproxy_group_members{{{JOB}, group="dovecot", state="Gone"}}', "2x90"),
    ],
    "MailProxyLimitZoneFull": [
        (f'mailproxy_limit_zone_events_total{{{JOB}, zone="user", event="zone_full"}}', "0+60x90")
    ],
    "MailProxyTokenRequestsFail": [(f'mailproxy_token_requests_total{{{JOB}, result="refused"}}', "0+60x90")],
    "MailProxyCertificateExpires": [
        (f'mailproxy_tls_certificate_expiry_timestamp_seconds{{{JOB}, server="imap"}}', "86400x90")
    ],
    "MailProxyReloadFailed": [(f'mailproxy_config_last_reload_successful{{{JOB}, pod="a"}}', "0x90")],
    "MailProxyRouteTableRefused": [(f'mailproxy_route_tables_refused{{{JOB}, pod="a"}}', "1x90")],
    "MailProxyUserListRefused": [(f'mailproxy_user_files_refused{{{JOB}, pod="a"}}', "1x90")],
    "MailProxyConfigSkew": [
        (f'mailproxy_config_info{{{JOB}, hash="a"}}', "1x90"),
        (f'mailproxy_config_info{{{JOB}, hash="b"}}', "1x90"),
    ],
    "MailProxyConnectionsNearLimit": [
        (f'mailproxy_connections_active{{{JOB}, pod="a", server="imap"}}', "90x90"),
        (f'mailproxy_connections_limit{{{JOB}, pod="a"}}', "100x90"),
    ],
    "MailProxyEventLoopSlow": [
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="0.1"}}', "0+1x90"),
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="1"}}', "0+60x90"),
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="+Inf"}}', "0+60x90"),
    ],
    "MailProxyWorkerCrashes": [
        (f'mailproxy_worker_restarts_total{{{JOB}, pod="a", reason="crash"}}', "0+1x90")
    ],
    "MailProxyInternalErrors": [
        (f'mailproxy_connections_closed_total{{{JOB}, pod="a", reason="internal_error"}}', "0+1x90")
    ],
    "MailProxyDown": [(f'up{{{JOB}, pod="a"}}', "0x90")],
}
