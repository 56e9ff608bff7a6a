# SPDX-License-Identifier: Apache-2.0
"""Every metric of the proxy, defined once: name, type, labels, help, buckets, and how workers are aggregated.

Plain data, used by ``metrics`` (values), ``aggregate`` (sums), ``prometheus``
(exposition) and ``metrics_reference`` (the reference page).
"""

from __future__ import annotations

from typing import Final

from mailproxy import enums
from mailproxy.telemetry.metric_definition import Aggregation as Aggregation  # noqa: PLC0414 - for other modules
from mailproxy.telemetry.metric_definition import Label as Label  # noqa: PLC0414 - for other modules
from mailproxy.telemetry.metric_definition import MetricDefinition as MetricDefinition  # noqa: PLC0414 - for other modules
from mailproxy.telemetry.metric_definition import MetricType as MetricType  # noqa: PLC0414 - for other modules
from mailproxy.telemetry.metric_definition import closed as _closed
from mailproxy_config.model import Protocol
from mailproxy_config.upstream_members import MemberState

NANO: Final = 1_000_000_000
"""Nanoseconds per second."""

LOGIN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONNECT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SESSION_BUCKETS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10800.0, 43200.0, 86400.0)
HANDSHAKE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
DNS_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

LIMIT_MODE: Final = "enforce"
"""The only value of the label ``mode``."""

_SERVER = Label("server")
_PROTOCOL = _closed("protocol", Protocol)
_TLS_MODE = _closed("mode", enums.TlsMode)
_PURPOSE = _closed("purpose", enums.DnsPurpose)

CONNECTIONS_ACCEPTED: Final = MetricDefinition(
    name="mailproxy_connections_accepted_total",
    type=MetricType.COUNTER,
    labels=(_SERVER, _PROTOCOL),
    help="Client connections accepted.",
    from_start=True,
)
CONNECTIONS_ACTIVE: Final = MetricDefinition(
    name="mailproxy_connections_active",
    type=MetricType.GAUGE,
    labels=(_SERVER, _PROTOCOL),
    help="Client connections that are open.",
    from_start=True,
)
CONNECTIONS_CLOSED: Final = MetricDefinition(
    name="mailproxy_connections_closed_total",
    type=MetricType.COUNTER,
    labels=(_SERVER, _PROTOCOL, _closed("reason", enums.CloseReason)),
    help="Client connections that ended, by the first cause of their end.",
    from_start=True,
)
CONNECTIONS_LIMIT: Final = MetricDefinition(
    name="mailproxy_connections_limit",
    type=MetricType.GAUGE,
    help="Client connections that all workers together accept at most (workerConnections times workers).",
    from_start=True,
)
SESSIONS_ACTIVE: Final = MetricDefinition(
    name="mailproxy_sessions_active",
    type=MetricType.GAUGE,
    labels=(_PROTOCOL, _closed("state", enums.SessionState)),
    help="Sessions by the phase they are in.",
    from_start=True,
)
SESSION_DURATION: Final = MetricDefinition(
    name="mailproxy_session_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PROTOCOL, _closed("authenticated", enums.Authenticated)),
    buckets=SESSION_BUCKETS,
    help="Duration of client connections, by whether they reached an upstream.",
)
PROXY_HEADERS: Final = MetricDefinition(
    name="mailproxy_proxy_protocol_headers_total",
    type=MetricType.COUNTER,
    labels=(_SERVER, _closed("result", enums.ProxyHeaderResult)),
    help="PROXY protocol headers required from clients, by result.",
)
LIMIT_REJECTIONS: Final = MetricDefinition(
    name="mailproxy_limit_rejections_total",
    type=MetricType.COUNTER,
    labels=(_SERVER, _closed("limit", enums.Limit), Label("mode", (LIMIT_MODE,))),
    help="Clients rejected because a limit was reached.",
    from_start=True,
)
LIMIT_ZONE_EVENTS: Final = MetricDefinition(
    name="mailproxy_limit_zone_events_total",
    type=MetricType.COUNTER,
    labels=(Label("zone"), _closed("event", enums.ZoneEvent)),
    help="Events in the zones of limitConn, limitReq and limitPreauth.",
    from_start=True,
)
LIMIT_ZONE_ENTRIES: Final = MetricDefinition(
    name="mailproxy_limit_zone_entries",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    labels=(Label("zone"),),
    help="Entries of a zone, those that are over included until their place is needed.",
)
LIMIT_ZONE_CAPACITY: Final = MetricDefinition(
    name="mailproxy_limit_zone_capacity",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    labels=(Label("zone"),),
    help="Entries that a zone has place for.",
)
PENALTIES: Final = MetricDefinition(
    name="mailproxy_auth_penalties_total",
    type=MetricType.COUNTER,
    labels=(_closed("action", enums.PenaltyAction),),
    help="Logins that were delayed or refused because of failed logins, and those that never are.",
    from_start=True,
)
PENALTY_WAITING: Final = MetricDefinition(
    name="mailproxy_auth_penalty_waiting",
    type=MetricType.GAUGE,
    help="Logins that wait until their delay is over or another login of their account has ended.",
    from_start=True,
)
FAILED_CREDENTIALS: Final = MetricDefinition(
    name="mailproxy_auth_failed_credentials_total",
    type=MetricType.COUNTER,
    labels=(_closed("credentials", enums.FailedCredentials),),
    help="Refused credentials that were counted, by whether they are among the last ones of their address.",
    from_start=True,
)
ADDRESSES_BLOCKED: Final = MetricDefinition(
    name="mailproxy_auth_addresses_blocked_total",
    type=MetricType.COUNTER,
    help="Blocks of client addresses that were begun because of failed logins.",
    from_start=True,
)
PROTOCOL_ERRORS: Final = MetricDefinition(
    name="mailproxy_protocol_errors_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("error", enums.ProtocolErrorKind)),
    help="Protocol violations of clients, or upstreams (no_greeting, unexpected_reply, reply_too_long).",
    from_start=True,
)
LOGINS: Final = MetricDefinition(
    name="mailproxy_logins_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("method", enums.Method), _closed("result", enums.LoginResult)),
    help="Logins: one per complete set of credentials or (smtp_auth none) recipient.",
    from_start=True,
)
LOGIN_DURATION: Final = MetricDefinition(
    name="mailproxy_login_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PROTOCOL, _closed("result", enums.LoginOutcome)),
    buckets=LOGIN_BUCKETS,
    help="Time from complete credentials to the reply to the client, without Auth-Wait pauses.",
)
AUTH_REQUEST_DURATION: Final = MetricDefinition(
    name="mailproxy_auth_request_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PROTOCOL, _closed("outcome", enums.AuthOutcome)),
    buckets=LOGIN_BUCKETS,
    help="One request to the authentication service, from connecting to the end of the response's header.",
    from_start=True,
)
AUTH_ERRORS: Final = MetricDefinition(
    name="mailproxy_auth_errors_total",
    type=MetricType.COUNTER,
    labels=(_closed("reason", enums.AuthErrorReason),),
    help="Requests to the authentication service without a usable response.",
    from_start=True,
)
AUTH_IN_FLIGHT: Final = MetricDefinition(
    name="mailproxy_auth_requests_in_flight",
    type=MetricType.GAUGE,
    help="Requests to the authentication service in progress.",
    from_start=True,
)
TOKEN_VALIDATIONS: Final = MetricDefinition(
    name="mailproxy_oauth_validations_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.TokenFinding),),
    help="Access tokens validated by the proxy (authMode Jwt), by result.",
    from_start=True,
)
JWKS_FETCHES: Final = MetricDefinition(
    name="mailproxy_oauth_jwks_fetches_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.JwksResult),),
    help="Requests for the keys of token issuers (JWKS), by result.",
    from_start=True,
)
AUTH_CACHE_EVENTS: Final = MetricDefinition(
    name="mailproxy_auth_cache_events_total",
    type=MetricType.COUNTER,
    labels=(_closed("event", enums.AuthCacheEvent),),
    help="Logins with authCache, by what the cache did; and entries that were stored and evicted.",
    from_start=True,
)
AUTH_CACHE_ENTRIES: Final = MetricDefinition(
    name="mailproxy_auth_cache_entries",
    type=MetricType.GAUGE,
    help="Entries in the caches of authentication services' decisions.",
    from_start=True,
)
AUTH_CACHE_BYTES: Final = MetricDefinition(
    name="mailproxy_auth_cache_bytes",
    type=MetricType.GAUGE,
    help="Memory of these entries.",
    from_start=True,
)
POLICY_REQUESTS: Final = MetricDefinition(
    name="mailproxy_policy_requests_total",
    type=MetricType.COUNTER,
    labels=(_closed("command", enums.PolicyCommand), _closed("result", enums.PolicyResult)),
    help="Requests to policy servers (authPolicyServer), by command and result; skipped: not sent.",
    from_start=True,
)
POLICY_REQUEST_DURATION: Final = MetricDefinition(
    name="mailproxy_policy_request_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_closed("command", enums.PolicyCommand),),
    buckets=CONNECT_BUCKETS,
    help="Duration of requests to policy servers, failed ones included.",
)
POLICY_REPORTS_DROPPED: Final = MetricDefinition(
    name="mailproxy_policy_reports_dropped_total",
    type=MetricType.COUNTER,
    help="Results of logins that a policy server did not get.",
    from_start=True,
)
POLICY_BREAKER_OPEN: Final = MetricDefinition(
    name="mailproxy_policy_breaker_open",
    type=MetricType.GAUGE,
    help="Policy servers, counted in each worker, whose requests are skipped because they failed.",
    from_start=True,
)
UPSTREAM_CONNECT_DURATION: Final = MetricDefinition(
    name="mailproxy_upstream_connect_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PROTOCOL, _closed("result", enums.ConnectResult)),
    buckets=CONNECT_BUCKETS,
    help="Time to connect to an upstream.",
)
UPSTREAM_ERRORS: Final = MetricDefinition(
    name="mailproxy_upstream_errors_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("stage", enums.UpstreamStage)),
    help="Failed logins at upstreams, by their stage; stage login includes wrong passwords.",
    from_start=True,
)
UPSTREAM_TRIES: Final = MetricDefinition(
    name="mailproxy_upstream_tries_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("result", enums.UpstreamTry)),
    help="Tries of logins at upstreams with several addresses or proxy_next_upstream, by their result.",
    from_start=True,
)
UPSTREAM_UNHEALTHY: Final = MetricDefinition(
    name="mailproxy_upstream_unhealthy",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="Addresses of upstreams that failed three times in a row, and so are last in order.",
)
ROUTE_TABLES_REFUSED: Final = MetricDefinition(
    name="mailproxy_route_tables_refused",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="Tables of routes whose file has invalid lines, so that its last valid version is used.",
)
USER_FILES_REFUSED: Final = MetricDefinition(
    name="mailproxy_user_files_refused",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="Files of users (auth_user_file) with invalid lines, so that their last valid version is used.",
)
GROUP_MEMBERS: Final = MetricDefinition(
    name="mailproxy_group_members",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    labels=(Label("group"), _closed("state", MemberState)),
    help="Members of Services in spec.upstreams, by state, as in the newest list that this pod has.",
)
GROUP_LOGINS: Final = MetricDefinition(
    name="mailproxy_group_logins_total",
    type=MetricType.COUNTER,
    labels=(Label("group"), _closed("result", enums.GroupLogin)),
    help="Logins to members of Services in spec.upstreams, by which member got them.",
    from_start=True,
)
MEMBER_LISTS_REFUSED: Final = MetricDefinition(
    name="mailproxy_member_lists_refused",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="Files with members of Services that are invalid, so that their last valid version is used.",
)
PASSWORD_VERIFICATIONS: Final = MetricDefinition(
    name="mailproxy_password_verifications_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.PasswordFinding),),
    help="Passwords verified by the proxy (auth_mode static), by result.",
    from_start=True,
)
PASSWORD_VERIFICATION_DURATION: Final = MetricDefinition(
    name="mailproxy_password_verification_duration_seconds",
    type=MetricType.HISTOGRAM,
    buckets=LOGIN_BUCKETS,
    help="Time to verify a password in a thread, without the time in the queue.",
    from_start=True,
)
PASSWORDS_PENDING: Final = MetricDefinition(
    name="mailproxy_password_verifications_pending",
    type=MetricType.GAUGE,
    help="Passwords that wait for a thread or are verified; a worker accepts 64.",
)
UPSTREAM_CONFIG_ERRORS: Final = MetricDefinition(
    name="mailproxy_upstream_config_errors_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("stage", enums.UpstreamStage)),
    help="Failed logins at upstreams that fail until an administrator changes the configuration, by stage.",
    from_start=True,
)
UPSTREAM_TLS_FAILURES: Final = MetricDefinition(
    name="mailproxy_upstream_tls_failures_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("reason", enums.UpstreamTlsFailure)),
    help="Logins that failed because TLS with the upstream could not be started.",
    from_start=True,
)
UPSTREAM_TLS_DURATION: Final = MetricDefinition(
    name="mailproxy_upstream_tls_handshake_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PROTOCOL, _closed("resumed", enums.Resumed)),
    buckets=HANDSHAKE_BUCKETS,
    help="Duration of completed TLS handshakes with upstreams, by whether they resumed a session.",
)
UPSTREAM_CERTIFICATE_EXPIRY: Final = MetricDefinition(
    name="mailproxy_upstream_certificate_expiry_timestamp_seconds",
    type=MetricType.GAUGE,
    labels=(_SERVER,),
    aggregation=Aggregation.MIN,
    help="The earliest expiry of a certificate that an upstream has sent since the last reload.",
)
TOKEN_REQUESTS: Final = MetricDefinition(
    name="mailproxy_token_requests_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.TokenResult),),
    help="Requests for access tokens (proxyAuthToken), by their result.",
    from_start=True,
)
TOKEN_REQUEST_DURATION: Final = MetricDefinition(
    name="mailproxy_token_request_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(),
    buckets=CONNECT_BUCKETS,
    help="Duration of requests for access tokens, failed ones included.",
)
TOKEN_EXPIRY: Final = MetricDefinition(
    name="mailproxy_token_expiry_timestamp_seconds",
    type=MetricType.GAUGE,
    labels=(_SERVER,),
    aggregation=Aggregation.MAX,
    help="Expiry of the newest access token. Tokens are renewed by logins only, so it may be in the past.",
)
RELAYED_BYTES: Final = MetricDefinition(
    name="mailproxy_relayed_bytes_total",
    type=MetricType.COUNTER,
    labels=(_PROTOCOL, _closed("direction", enums.Direction)),
    help="Bytes relayed after login, including bytes that the client sent before its login was complete.",
    from_start=True,
)
TLS_HANDSHAKES: Final = MetricDefinition(
    name="mailproxy_tls_handshakes_total",
    type=MetricType.COUNTER,
    labels=(_TLS_MODE, _closed("version", enums.TlsVersion)),
    help="TLS handshakes completed with clients.",
)
TLS_RESUMED: Final = MetricDefinition(
    name="mailproxy_tls_sessions_resumed_total",
    type=MetricType.COUNTER,
    labels=(_TLS_MODE,),
    help="Completed TLS handshakes that resumed an earlier session.",
)
TLS_FAILURES: Final = MetricDefinition(
    name="mailproxy_tls_handshake_failures_total",
    type=MetricType.COUNTER,
    labels=(_TLS_MODE, _closed("reason", enums.TlsFailure)),
    help="TLS handshakes with clients that failed.",
)
TLS_DURATION: Final = MetricDefinition(
    name="mailproxy_tls_handshake_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_TLS_MODE,),
    buckets=HANDSHAKE_BUCKETS,
    help="Duration of completed TLS handshakes with clients.",
)
CERTIFICATE_EXPIRY: Final = MetricDefinition(
    name="mailproxy_tls_certificate_expiry_timestamp_seconds",
    type=MetricType.GAUGE,
    labels=(_SERVER, Label("certificate")),
    aggregation=Aggregation.MIN,
    help="When the loaded certificate expires; certificate is its position in sslCertificate, from 0.",
)
DNS_TIMEOUTS: Final = MetricDefinition(
    name="mailproxy_dns_timeouts_total",
    type=MetricType.COUNTER,
    labels=(_PURPOSE,),
    help="DNS queries without a reply within resolverTimeout.",
    from_start=True,
)
DNS_QUERIES: Final = MetricDefinition(
    name="mailproxy_dns_queries_total",
    type=MetricType.COUNTER,
    labels=(_PURPOSE, _closed("result", enums.DnsResult)),
    help="DNS queries sent, by purpose and result.",
)
DNS_DURATION: Final = MetricDefinition(
    name="mailproxy_dns_query_duration_seconds",
    type=MetricType.HISTOGRAM,
    labels=(_PURPOSE,),
    buckets=DNS_BUCKETS,
    help="Time from a DNS query to its reply.",
)
DNS_CACHE: Final = MetricDefinition(
    name="mailproxy_dns_cache_requests_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.CacheResult),),
    help="Lookups in the resolver's cache.",
)
DNS_CACHE_ENTRIES: Final = MetricDefinition(
    name="mailproxy_dns_cache_entries",
    type=MetricType.GAUGE,
    help="Names in the resolver's cache.",
    from_start=True,
)
CONFIG_INFO: Final = MetricDefinition(
    name="mailproxy_config_info",
    type=MetricType.GAUGE,
    labels=(Label("hash"),),
    aggregation=Aggregation.EACH,
    help="1 for the running configuration; two series during a reload.",
)
CONFIG_SUCCESSFUL: Final = MetricDefinition(
    name="mailproxy_config_last_reload_successful",
    type=MetricType.GAUGE,
    aggregation=Aggregation.MIN,
    help="1, or 0 while the last configuration was rejected and the previous one runs.",
)
CONFIG_TIMESTAMP: Final = MetricDefinition(
    name="mailproxy_config_last_reload_success_timestamp_seconds",
    type=MetricType.GAUGE,
    aggregation=Aggregation.MIN,
    help="When the running configuration was loaded.",
)
CONFIG_GENERATION: Final = MetricDefinition(
    name="mailproxy_config_generation",
    type=MetricType.GAUGE,
    aggregation=Aggregation.MIN,
    help="Generation of the MailProxy resource that the configuration came from, 0 without one.",
)
CONFIG_RELOADS: Final = MetricDefinition(
    name="mailproxy_config_reloads_total",
    type=MetricType.COUNTER,
    labels=(_closed("result", enums.ReloadResult),),
    help="Loads of a configuration, the first one included.",
    aggregation=Aggregation.OWN,
    from_start=True,
)
BUILD_INFO: Final = MetricDefinition(
    name="mailproxy_build_info",
    type=MetricType.GAUGE,
    labels=(Label("version"), Label("revision"), Label("python_version"), Label("openssl_version")),
    aggregation=Aggregation.OWN,
    help="1; the labels are the running version.",
    from_start=True,
)
WORKERS: Final = MetricDefinition(
    name="mailproxy_workers",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="Running worker processes.",
    from_start=True,
)
WORKER_RESTARTS: Final = MetricDefinition(
    name="mailproxy_worker_restarts_total",
    type=MetricType.COUNTER,
    labels=(_closed("reason", enums.RestartReason),),
    aggregation=Aggregation.OWN,
    help="Worker processes that were replaced.",
    from_start=True,
)
DRAINING: Final = MetricDefinition(
    name="mailproxy_draining",
    type=MetricType.GAUGE,
    aggregation=Aggregation.MAX,
    help="1 while the proxy drains.",
    from_start=True,
)
LOOP_LAG: Final = MetricDefinition(
    name="mailproxy_event_loop_lag_seconds",
    type=MetricType.HISTOGRAM,
    buckets=LAG_BUCKETS,
    help="How late a timer of 100 ms (of 1 s while idle) fired.",
    from_start=True,
)
PROCESS_MEMORY: Final = MetricDefinition(
    name="process_resident_memory_bytes",
    type=MetricType.GAUGE,
    help="Resident memory of all processes together.",
)
PROCESS_FDS: Final = MetricDefinition(
    name="process_open_fds",
    type=MetricType.GAUGE,
    help="Open file descriptors of all processes together.",
)
PROCESS_MAX_FDS: Final = MetricDefinition(
    name="process_max_fds",
    type=MetricType.GAUGE,
    aggregation=Aggregation.MIN,
    help="File descriptors that a process may open.",
)
PROCESS_CPU: Final = MetricDefinition(
    name="process_cpu_seconds_total",
    type=MetricType.COUNTER,
    units_per_base=NANO,
    help="User and system CPU time of all processes together, those that ended included.",
)
PROCESS_START: Final = MetricDefinition(
    name="process_start_time_seconds",
    type=MetricType.GAUGE,
    aggregation=Aggregation.OWN,
    help="When the proxy was started.",
)

ALL_METRICS: Final[tuple[MetricDefinition, ...]] = tuple(
    item for item in dict(globals()).values() if isinstance(item, MetricDefinition)
)
"""All of them, in the order above."""

BY_NAME: Final[dict[str, MetricDefinition]] = {family.name: family for family in ALL_METRICS}
