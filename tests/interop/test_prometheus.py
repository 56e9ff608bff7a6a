# SPDX-License-Identifier: Apache-2.0
"""Prometheus scrapes the proxy, and evaluates queries for the three most important metric families."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from support.needs import Needs
from support.servers import prometheus as prometheuses
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.programs import Ports, eventually, run_program
from support.servers.prometheus import Prometheus
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import ServerPlan

pytestmark = pytest.mark.interop

FAMILIES: Final = (
    'mailproxy_protocol_errors_total{protocol="imap",error="unknown_command"}',
    'mailproxy_protocol_errors_total{protocol="pop3",error="line_too_long"}',
    'mailproxy_auth_request_duration_seconds_count{protocol="pop3",outcome="denied"}',
    'mailproxy_auth_request_duration_seconds_sum{protocol="pop3",outcome="denied"}',
    'mailproxy_auth_request_duration_seconds_bucket{protocol="pop3",outcome="denied",le="+Inf"}',
    'mailproxy_auth_request_duration_seconds_count{protocol="imap",outcome="timeout"}',
    'mailproxy_dns_timeouts_total{purpose="ptr"}',
)


@pytest.fixture(scope="module")
def scraped_proxy(
    new_folder: Callable[[str], Path], ports: Ports, service: AuthService
) -> Iterator[tuple[Proxy, dict[str, int]]]:
    """A proxy with two workers, after one failure of each kind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent_dns:
        silent_dns.bind(("127.0.0.1", 0))
        resolver = {"addresses": [f"127.0.0.1:{silent_dns.getsockname()[1]}"]}
        plan = ServerPlan(service, ports)
        plan.add("watched-imap", "imap", authHttpTimeout="300ms")
        plan.add("watched-pop3", "pop3")
        plan.add("watched-smtp", "smtp", resolver=resolver, resolverTimeout="300ms")
        service.rules["/watched-imap"] = AuthRule(ports.take(), delay=1.0)
        service.rules["/watched-pop3"] = AuthRule(ports.take())
        proxy = proxies.start(new_folder("watched"), manifest(plan.servers, {}, workers=2))
        cause_failures(plan.ports)
        yield proxy, plan.ports
        proxy.stop()


def cause_failures(ports: dict[str, int]) -> None:
    """Cause invalid commands, failed logins, a slow authentication service and a silent DNS server."""
    with RawClient(ports["watched-imap"]) as raw:
        raw.read_line()
        assert raw.exchange(b"a EAT") == b"a BAD invalid command"
        assert raw.exchange(b"b LOGIN alice secret") == b"* BAD internal server error"
    with RawClient(ports["watched-pop3"]) as raw:
        raw.send(b"USER alice\r\nPASS wrong\r\n")
        assert raw.read_to_eof().endswith(b"-ERR Invalid login or password\r\n")
    with RawClient(ports["watched-pop3"]) as raw:
        raw.send(b"USER " + b"x" * 600 + b"\r\n")
        assert raw.read_to_eof()
    with RawClient(ports["watched-smtp"]) as raw:
        assert raw.read_line().startswith(b"220 ")


@pytest.fixture(scope="module")
def prometheus(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, scraped_proxy: tuple[Proxy, dict[str, int]]
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes this proxy."""
    path = needs("prometheus")
    running = prometheuses.start(path, new_folder("prometheus"), ports.take(), scraped_proxy[0].admin)
    yield running
    running.running.stop()


def test_target_is_up(prometheus: Prometheus) -> None:
    assert eventually(lambda: prometheus.query("up == 1"), "a scrape")


@pytest.mark.parametrize("series", FAMILIES)
def test_failures_of_both_workers_are_counted(prometheus: Prometheus, series: str) -> None:
    """The value of each metric is the sum over both workers."""
    result = eventually(lambda: prometheus.query(f"{series} > 0"), series)
    assert len(result) == 1


def test_request_duration_has_quantiles(prometheus: Prometheus) -> None:
    """The request to the slow authentication service timed out after 0.3 s."""
    buckets = 'mailproxy_auth_request_duration_seconds_bucket{protocol="imap",outcome="timeout"}'
    result = eventually(lambda: prometheus.query(f"histogram_quantile(0.9, {buckets}) > 0.25"), buckets)
    assert float(result[0]["value"][1]) <= 1.0


def test_promtool_accepts_metrics_of_two_workers(
    needs: Needs, scraped_proxy: tuple[Proxy, dict[str, int]]
) -> None:
    status, page = scraped_proxy[0].get("/metrics")
    assert (status, run_program([needs("promtool"), "check", "metrics"], stdin=page)) == (200, "")
