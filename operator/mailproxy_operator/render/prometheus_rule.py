# SPDX-License-Identifier: Apache-2.0
"""The PrometheusRule: alerts about one MailProxy, selected by the job label of its PodMonitor.

The same alerts exist as files for a Prometheus without the Prometheus operator, for all
MailProxies together (``deploy/monitoring``).  So each alert groups by the labels that
distinguish MailProxies, and its text contains the name of the MailProxy.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy_operator.api.kinds import PROMETHEUS_RULE, Manifest
from mailproxy_operator.render.plan import Plan

RUNBOOKS = "https://github.com/mailproxy/mailproxy/blob/main/docs/alerts.md"
"""The page with a section for each alert."""
PROXY_LABELS = "namespace, mailproxy, job"
"""Labels that distinguish MailProxies; ``job`` is NAMESPACE/NAME in this project's scrape configurations."""
_EVERYBODY = '{{ with $labels.namespace }}{{ . }}/{{ end }}{{ or $labels.mailproxy $labels.job "mailproxy" }}'
_WHERE = "{{ or $labels.pod $labels.instance }}"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        expression: PromQL; ``JOB`` is replaced by the matcher of the job, ``PROXY`` by the labels that
            distinguish MailProxies.
        after: The ``for`` duration; empty for an immediate alert.
        summary: What has happened, in one line; ``WHO`` is replaced by the MailProxy.
        description: The effect on users, and what to check first.
        for_all: The expression for all MailProxies together, if it is different.
    """

    name: str
    expression: str
    after: str
    severity: str
    summary: str
    description: str
    for_all: str = ""

    def rule(self, expression: str, who: str, labels: dict[str, str]) -> Manifest:
        """Return the alert as a Prometheus rule.

        Args:
            expression: PromQL without placeholders.
            who: The text for the MailProxy.
            labels: Additional labels.
        """
        rule: Manifest = {"alert": self.name, "expr": expression}
        if self.after:
            rule["for"] = self.after
        return rule | {
            "labels": {"severity": self.severity, **labels},
            "annotations": {
                "summary": self.summary.replace("WHO", who),
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}#{self.name.lower()}",
            },
        }


ALERTS = (
    Alert(
        "MailProxyLoginFailures",
        "sum by (PROXY, protocol) (rate(mailproxy_logins_total"
        '{JOB, result=~"timeout|unavailable|invalid_response|upstream_failed|upstream_refused"}[10m]))\n'
        "  / sum by (PROXY, protocol) (rate(mailproxy_logins_total"
        '{JOB, result!~"aborted|bad_credentials_syntax"}[10m])) > 0.05\n'
        "and on (PROXY, protocol) sum by (PROXY, protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 0.1",
        "10m",
        "critical",
        "WHO: {{ $value | humanizePercentage }} of {{ $labels.protocol }} logins fail,"
        " not for a wrong password",
        "Users with the right password cannot log in. Compare the errors of the authentication service"
        " and of the mail servers: one of the two fails.",
    ),
    Alert(
        "MailProxyLoginsDenied",
        'sum by (PROXY, protocol) (rate(mailproxy_logins_total{JOB, result="denied"}[10m]))\n'
        "  / sum by (PROXY, protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 0.8\n"
        "and on (PROXY, protocol) sum by (PROXY, protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 1",
        "15m",
        "warning",
        "WHO: {{ $value | humanizePercentage }} of {{ $labels.protocol }} logins are denied",
        "Either somebody guesses passwords, or the authentication service denies everybody.",
    ),
    Alert(
        "MailProxyPenaltyRefusesLogins",
        'sum by (PROXY) (rate(mailproxy_auth_penalties_total{JOB, action="refused"}[10m])) > 0.1',
        "10m",
        "warning",
        "WHO: {{ $value | humanize }} logins per second get temporary errors because of failed logins",
        "Passwords are being guessed. Users who have not logged in from their network within the last hour"
        " may be affected. The log of the pods has the addresses in auth_penalty.",
    ),
    Alert(
        "MailProxyAuthSlow",
        "histogram_quantile(0.99, sum by (PROXY, le, protocol)"
        " (rate(mailproxy_auth_request_duration_seconds_bucket{JOB}[5m]))) > 2",
        "10m",
        "warning",
        "WHO: one in a hundred {{ $labels.protocol }} logins waits {{ $value | humanizeDuration }}"
        " or more for the authentication service",
        "Logins are slow, and fail when authHttpTimeout is reached. The authentication service,"
        " its database or the way to it is slow.",
    ),
    Alert(
        "MailProxyAuthErrors",
        "sum by (PROXY, reason) (rate(mailproxy_auth_errors_total{JOB}[5m])) > 0.1",
        "5m",
        "critical",
        "WHO: the authentication service gives no usable answer ({{ $labels.reason }})",
        "Logins fail. By the label reason, the service is not reached, is too slow, or answers wrongly.",
    ),
    Alert(
        "MailProxyTokenKeysUnavailable",
        'sum by (PROXY, result) (rate(mailproxy_oauth_jwks_fetches_total{JOB, result!="ok"}[5m])) > 0',
        "10m",
        "warning",
        "WHO: the keys of a token issuer cannot be fetched ({{ $labels.result }})",
        "Tokens with known keys still log in, for one day. Tokens with new keys do not, nor any token after a"
        " restart of the pods. The log of the pods has the cause in jwks_fetch_failed.",
    ),
    Alert(
        "MailProxyPolicyServerFails",
        "sum by (PROXY, result) (rate("
        'mailproxy_policy_requests_total{JOB, result=~"timeout|unavailable|invalid|skipped"}[5m])) > 0',
        "5m",
        "warning",
        "WHO: the policy server does not answer usably ({{ $labels.result }})",
        "Logins go on without it, or with rejectOnFail, they are refused temporarily. The log of the pods has"
        " the cause in policy_server_failed.",
    ),
    Alert(
        "MailProxyDnsTimeouts",
        "sum by (PROXY, purpose) (rate(mailproxy_dns_timeouts_total{JOB}[10m])) > 0.1",
        "10m",
        "warning",
        "WHO: look-ups for {{ $labels.purpose }} get no answer in time",
        "The name servers of resolver do not answer: SMTP greetings are late, or the names of services"
        " and mail servers are not found.",
    ),
    Alert(
        "MailProxyUpstreamErrors",
        'sum by (PROXY, protocol, stage) (rate(mailproxy_upstream_errors_total{JOB, stage!="relay"}[5m]))\n'
        "  / on (PROXY, protocol) group_left sum by (PROXY, protocol)"
        " (rate(mailproxy_upstream_connect_duration_seconds_count{JOB}[5m])) > 0.05",
        "10m",
        "critical",
        "WHO: more than one in twenty {{ $labels.protocol }} sessions fails at the mail server"
        " ({{ $labels.stage }})",
        "Users whose password was right do not get to their mailbox. The stage shows how far it gets:"
        " connect, greeting, or login.",
    ),
    Alert(
        "MailProxyUpstreamTlsFails",
        "sum by (PROXY, protocol, reason) (rate(mailproxy_upstream_tls_failures_total{JOB}[5m])) > 0",
        "5m",
        "critical",
        "WHO: {{ $labels.protocol }} logins fail because TLS with the mail server cannot be started"
        " ({{ $labels.reason }})",
        "No credentials were sent. The log of the pods has the mail server and the cause in upstream_failed.",
    ),
    Alert(
        "MailProxyUpstreamMisconfigured",
        "sum by (PROXY, protocol, stage)"
        ' (rate(mailproxy_upstream_config_errors_total{JOB, stage!="tls"}[5m])) > 0',
        "5m",
        "critical",
        "WHO: {{ $labels.protocol }} logins fail at the mail server until its configuration or that of the"
        " proxy is changed ({{ $labels.stage }})",
        "No retry helps. The event UpstreamMisconfigured and upstream_failed in the log of the pods have the"
        " cause, and what to set.",
    ),
    Alert(
        "MailProxyUpstreamCertificateExpires",
        "min by (PROXY, server) (mailproxy_upstream_certificate_expiry_timestamp_seconds{JOB}) - time()"
        " < 7 * 86400",
        "1h",
        "warning",
        "WHO: a certificate of the mail servers behind server {{ $labels.server }} expires in"
        " {{ $value | humanizeDuration }}",
        "Logins fail when it has expired. It must be renewed at the mail server.",
    ),
    Alert(
        "MailProxyUpstreamFailsOver",
        "sum by (PROXY, protocol)"
        ' (rate(mailproxy_upstream_tries_total{JOB, result=~"next|exhausted|timeout"}[5m]))\n'
        "  / sum by (PROXY, protocol)"
        ' (rate(mailproxy_upstream_tries_total{JOB, result!="abandoned"}[5m])) > 0.05',
        "10m",
        "warning",
        "WHO: more than one in twenty tries of {{ $labels.protocol }} logins at the mail servers fails",
        "At least one address of the mail servers fails. While others work, logins only take longer. The log"
        " of the pods has the address and the cause in upstream_try_failed.",
    ),
    Alert(
        "MailProxyNoReadyMembers",
        'max by (PROXY, group) (mailproxy_group_members{JOB, state="Ready"}) == 0',
        "2m",
        "critical",
        "WHO: no mail server of upstream {{ $labels.group }} is ready",
        "Its logins get temporary failures. The condition GroupsReady of the MailProxy has the Service and"
        " the cause.",
    ),
    Alert(
        "MailProxyTokenRequestsFail",
        'sum by (PROXY, result) (rate(mailproxy_token_requests_total{JOB, result!="ok"}[5m])) > 0',
        "10m",
        "critical",
        "WHO: the token service provides no access tokens ({{ $labels.result }})",
        "Logins at mail servers fail when the last token has expired, at most an hour later. The log of the"
        " pods has the cause in token_request_failed.",
    ),
    Alert(
        "MailProxyCertificateExpires",
        "min by (PROXY, server) (mailproxy_tls_certificate_expiry_timestamp_seconds{JOB}) - time()"
        " < 14 * 86400",
        "1h",
        "warning",
        "WHO: the certificate of server {{ $labels.server }} expires in {{ $value | humanizeDuration }}",
        "It was not renewed in time. A renewed Secret is loaded without a restart.",
    ),
    Alert(
        "MailProxyReloadFailed",
        "min by (PROXY, pod, instance) (mailproxy_config_last_reload_successful{JOB}) == 0",
        "5m",
        "warning",
        f"WHO: {_WHERE} could not load its new configuration and keeps the old one",
        "The last change is not in effect there. The message is in the pod's log, at /config, and in"
        " the condition ConfigSynced.",
    ),
    Alert(
        "MailProxyRouteTableRefused",
        "max by (PROXY, pod, instance) (mailproxy_route_tables_refused{JOB}) > 0",
        "5m",
        "warning",
        f"WHO: {_WHERE} keeps an older version of a table of routes",
        "The newest version has an invalid line, so its changes are not in effect, and a pod that starts now"
        " does not start with it. The condition RoutesReady has the line.",
    ),
    Alert(
        "MailProxyUserListRefused",
        "max by (PROXY, pod, instance) (mailproxy_user_files_refused{JOB}) > 0",
        "5m",
        "warning",
        f"WHO: {_WHERE} keeps an older version of a list of users",
        "The newest version has an invalid line: new users cannot log in, removed ones still can, and a pod"
        " that starts now does not start with it. The condition RoutesReady has the line.",
    ),
    Alert(
        "MailProxyConfigSkew",
        "count by (PROXY) (count by (PROXY, hash) (mailproxy_config_info{JOB}"
        " unless on (PROXY, pod, instance) mailproxy_draining{JOB} == 1)) > 1",
        "15m",
        "warning",
        "WHO: {{ $value }} different configurations are in use",
        "Pods that are not draining have run different configurations for longer than a rollout takes:"
        " clients get different treatment by chance.",
    ),
    Alert(
        "MailProxyConnectionsNearLimit",
        "sum by (PROXY, pod, instance) (mailproxy_connections_active{JOB})"
        " / on (PROXY, pod, instance) mailproxy_connections_limit{JOB} > 0.8",
        "5m",
        "warning",
        f"WHO: {_WHERE} has {{{{ $value | humanizePercentage }}}} of the connections that it accepts",
        "Above the limit, new clients are refused. Raise workerConnections, or the number of pods.",
    ),
    Alert(
        "MailProxyEventLoopSlow",
        "histogram_quantile(0.99, sum by (PROXY, le, pod, instance)"
        " (rate(mailproxy_event_loop_lag_seconds_bucket{JOB}[5m]))) > 0.1",
        "10m",
        "warning",
        f"WHO: {_WHERE} gets too little CPU: it is late by {{{{ $value | humanizeDuration }}}}",
        "Everything there is slow. Raise resources.limits.cpu or the number of pods.",
    ),
    Alert(
        "MailProxyLimitZoneFull",
        'sum by (PROXY, zone) (increase(mailproxy_limit_zone_events_total{JOB, event="zone_full"}[15m])) > 0',
        "5m",
        "warning",
        "WHO: the zone {{ $labels.zone }} of a limit is full",
        "A limit is not applied to some clients. Make the zone larger in limitConnZone or limitReqZone, or"
        " look for a flood of addresses or users.",
    ),
    Alert(
        "MailProxyWorkerCrashes",
        "sum by (PROXY, pod, instance)"
        ' (increase(mailproxy_worker_restarts_total{JOB, reason=~"crash|unresponsive"}[15m])) > 0',
        "",
        "warning",
        f"WHO: a worker process of {_WHERE} ended unexpectedly or hung, and was replaced",
        "Its sessions were cut off. A crash is a fault of the proxy or of memory limits; an unresponsive "
        "worker was stopped, blocked or in a loop: its log line worker_hangs has more.",
    ),
    Alert(
        "MailProxyInternalErrors",
        "sum by (PROXY, pod, instance)"
        ' (increase(mailproxy_connections_closed_total{JOB, reason="internal_error"}[15m])) > 0',
        "",
        "warning",
        f"WHO: {_WHERE} closed connections because of a fault of the proxy",
        "Its log has a traceback. Report it.",
    ),
    Alert(
        "MailProxyDown",
        "absent(up{JOB} == 1)",
        "5m",
        "critical",
        "WHO: Prometheus reaches no pod",
        "No pod runs, or none is scraped under this job. Clients may be served all the same.",
        for_all='sum by (PROXY) (up{mailproxy!=""}) == 0',
    ),
)


def prometheus_rule(plan: Plan) -> Manifest | None:
    """Render the PrometheusRule, if the resource enables it."""
    asked = plan.resource.deployment.monitoring.prometheus_rule
    if not asked.enabled:
        return None
    metadata = plan.resource.metadata(plan.resource.name)
    metadata["labels"] = {**asked.labels, **metadata["labels"]}
    key = plan.resource.key
    labels = {"namespace": key.namespace, "mailproxy": key.name}
    rules = [alert.rule(_expression(alert, str(key)), str(key), labels) for alert in ALERTS]
    return {
        "apiVersion": PROMETHEUS_RULE.api_version,
        "kind": PROMETHEUS_RULE.name,
        "metadata": metadata,
        "spec": {"groups": [{"name": f"mailproxy.{key.namespace}.{key.name}", "rules": rules}]},
    }


def _expression(alert: Alert, job: str) -> str:
    return alert.expression.replace("JOB", f'job="{job}"').replace("PROXY", PROXY_LABELS)


def rule_for_all(alert: Alert) -> Manifest:
    """Return the rule of an alert for all MailProxies in Prometheus, grouped by MailProxy."""
    expression = alert.for_all or alert.expression
    for found, written in (("{JOB}", ""), ("JOB, ", ""), ("PROXY", PROXY_LABELS)):
        expression = expression.replace(found, written)
    return alert.rule(expression, _EVERYBODY, {})
