# SPDX-License-Identifier: Apache-2.0
"""Exposition in both formats, checked with Prometheus's own tool."""

from __future__ import annotations

import gzip
import subprocess

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from mailproxy import enums
from mailproxy.telemetry.aggregate import Aggregator, BuildInfo, MetricsPage, SupervisorFacts
from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.telemetry.process_stats import process_stats
from mailproxy.telemetry.prometheus import PageCollector, expose
from mailproxy_config.model import Protocol
from support.needs import Needs

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def full_page(servers: int = 1) -> MetricsPage:
    """A page on which every metric has a value."""
    metrics, totals = WorkerMetrics(), Aggregator()
    for number in range(servers):
        server = metrics.server(f'se"rver\\{number}', Protocol.IMAP)
        server.proxy_headers[enums.ProxyHeaderResult.V1].value += 1
        metrics.set_certificates(f"server{number}", [1.8e9])
    for protocol in Protocol:
        numbers = metrics.protocol(protocol)
        numbers.session_seconds[True].observe(70)
        numbers.login_seconds[True].observe(0.02)
        numbers.upstream_connect[True].observe(0.002)
        numbers.upstream_tls_seconds[True].observe(0.003)
    metrics.limit_zone("user").full.value += 1
    metrics.group_logins("dovecot")[enums.GroupLogin.OWNER].value += 1
    metrics.upstream_certificate_seen("server0", 1.9e9)
    metrics.token_received("server0", 1.9e9)
    metrics.token_seconds.observe(0.1)
    metrics.policy_seconds[enums.PolicyCommand.ALLOW].observe(0.1)
    metrics.tls_handshakes[enums.TlsMode.IMPLICIT, "TLSv1.3"].value += 2
    metrics.tls_resumed[enums.TlsMode.IMPLICIT].value += 1
    metrics.tls_failures[enums.TlsMode.IMPLICIT, enums.TlsFailure.EOF].value += 1
    metrics.tls_seconds[enums.TlsMode.IMPLICIT].observe(0.004)
    metrics.dns_queries[enums.DnsPurpose.PTR, enums.DnsResult.OK].value += 1
    metrics.dns_seconds[enums.DnsPurpose.PTR].observe(0.004)
    metrics.dns_cache[enums.CacheResult.HIT].value += 1
    metrics.config_loaded("0a1b", 4, 1.7e9)
    totals.update(1, metrics.snapshot())
    return totals.page(
        SupervisorFacts(
            build=BuildInfo(version="1", revision="abc", python_version="3.11", openssl_version="3.0"),
            workers=1,
            started=1.7e9,
            process=process_stats(),
            limit_zones={"user": (3, 1000)},
            members={("dovecot", "Ready"): 3},
        )
    )


@pytest.fixture(scope="module")
def text() -> str:
    return expose(full_page()).body.decode()


def test_full_page_has_every_metric(text: str) -> None:
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert shown == {family.name for family in ALL_METRICS}


def test_every_sample_has_the_defined_labels(text: str) -> None:
    declared = {
        family.name + suffix: set(family.label_names) | ({"le"} if suffix == "_bucket" else set())
        for family in ALL_METRICS
        for suffix in ("", "_bucket", "_sum", "_count")
    }
    samples = [sample for family in plain_text(text) for sample in family.samples]
    assert [s for s in samples if set(s.labels) != declared[s.name]] == []


def test_buckets_are_cumulative_and_end_in_the_count(text: str) -> None:
    name = 'mailproxy_login_duration_seconds_bucket{le="%s",protocol="imap",result="success"} %s\n'
    assert name % ("0.01", "0.0") in text
    assert name % ("0.025", "1.0") in text
    assert name % ("60.0", "1.0") in text
    assert name % ("+Inf", "1.0") in text
    assert 'mailproxy_login_duration_seconds_sum{protocol="imap",result="success"} 0.02\n' in text


def test_names_from_the_configuration_are_escaped(text: str) -> None:
    assert r'mailproxy_connections_accepted_total{protocol="imap",server="se\"rver\\0"} 0.0' in text


def test_there_are_no_created_series(text: str) -> None:
    assert "_created" not in text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_format_follows_the_accept_header(accept: str, content_type: str) -> None:
    assert expose({}, accept).content_type.startswith(content_type)


def test_openmetrics_parses_and_has_the_same_values() -> None:
    page = full_page()
    families = list(openmetrics(expose(page, OPENMETRICS).body.decode()))  # type: ignore[no-untyped-call]
    assert {f.name for f in families} == {family.name.removesuffix("_total") for family in ALL_METRICS}
    ours = [(s.name, s.labels, s.value) for f in families for s in f.samples]
    theirs = [(s.name, s.labels, s.value) for f in plain_text(expose(page).body.decode()) for s in f.samples]
    assert ours == theirs


@pytest.mark.parametrize(
    ("accept_encoding", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate, GZIP;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.0", None),
        ("br", None),
    ],
)
def test_page_is_gzipped_where_accepted(accept_encoding: str, encoding: str | None) -> None:
    page = full_page()
    shown = expose(page, "", accept_encoding)
    assert shown.encoding == encoding
    body = gzip.decompress(shown.body) if encoding else shown.body
    assert body == expose(page).body


def test_registry_detects_duplicate_names() -> None:
    registry = CollectorRegistry()
    Counter("mailproxy_logins", "Somebody else's.", registry=registry)
    with pytest.raises(ValueError, match="mailproxy_logins"):
        registry.register(PageCollector({}))


@pytest.mark.parametrize(("servers", "bound"), [(4, 1390), (8, 1566), (32, 2622)])
def test_number_of_series_is_limited(servers: int, bound: int) -> None:
    lines = expose(full_page(servers)).body.decode().splitlines()
    assert sum(not line.startswith("#") for line in lines) < bound


@pytest.mark.interop
def test_promtool_reports_no_problem(needs: Needs, text: str) -> None:
    promtool = needs("promtool")
    run = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, timeout=30, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
