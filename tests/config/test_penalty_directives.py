# SPDX-License-Identifier: Apache-2.0
"""``auth_penalty`` and the directives beside it: values, defaults, and what is refused."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.failed_logins import AuthBlock
from mailproxy_config.load import load
from mailproxy_config.manifest import read_manifest
from mailproxy_config.model import ServerConfig
from mailproxy_config.rendered import dump
from support.config_bodies import body, server

CLUSTER: Final = {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}}


def from_nginx(*directives: str, listen: str = "143") -> ServerConfig:
    text = f"mail {{ auth_http a; server {{ listen {listen}; {' '.join(directives)} }} }}\nevents {{}}\n"
    return load(text.encode(), source="nginx.conf").config.servers[0]


def problems_of(mail: dict[str, Any], *servers: Any, **spec: Any) -> list[Problem]:
    problems = Problems()
    read_manifest(body(*servers, mail={"authHttp": "a", **mail}, **spec), problems)
    return problems.found


def test_everything_is_off_by_default() -> None:
    found = from_nginx()
    assert (found.auth_penalty, found.failure_delay, found.auth_block) == (False, 0.0, None)
    assert (found.auth_penalty_exempt, found.auth_penalty_max) == ((), 1000)
    assert not found.counts_failed_logins


@pytest.mark.parametrize(
    ("directives", "seconds"),
    [
        ("auth_penalty on;", 2.0),
        ("auth_penalty on; auth_failure_delay 0;", 0.0),
        ("auth_failure_delay 500ms;", 0.5),
        ("auth_block failures=3;", 0.0),
    ],
)
def test_failure_delay_is_two_seconds_with_the_penalty_alone(directives: str, seconds: float) -> None:
    found = from_nginx(directives)
    assert found.failure_delay == seconds
    assert found.counts_failed_logins


def test_nginx_parameters_set_every_field_of_the_block() -> None:
    found = from_nginx("auth_block failures=5 window=1m for=30s max=1h;").auth_block
    assert found == AuthBlock(failures=5, window=60.0, seconds=30.0, maximum=3600.0)
    assert from_nginx("auth_block for=1m;").auth_block == AuthBlock(seconds=60.0)


@pytest.mark.parametrize(
    "parameters",
    [
        "failures=x",
        "failures=10001",
        "window=0",
        "for=1ms",
        "max=1s",
        "on",
        "for=1m for=2m",
        "count=3",
        "off for=1m",
    ],
)
def test_invalid_block_is_refused(parameters: str) -> None:
    with pytest.raises(ConfigError):
        from_nginx(f"auth_block {parameters};")


def test_server_switches_off_the_block_of_mail() -> None:
    text = (
        "mail { auth_http a; auth_block failures=3; server { listen 143; auth_block off; } "
        "server { listen 110; protocol pop3; } } events {}"
    )
    imap, pop3 = load(text.encode(), source="nginx.conf").config.servers
    assert (imap.auth_block, pop3.auth_block) == (None, AuthBlock(failures=3))


def test_values_survive_rendering() -> None:
    found = load(
        b"mail { auth_http a; server { listen 143; auth_penalty on; auth_penalty_exempt 192.0.2.0/24 ::1; "
        b"auth_penalty_max 50; auth_failure_delay 1500ms; auth_block failures=3 for=90s; } } events {}",
        source="nginx.conf",
    ).config
    again = load(dump(found), source="mailproxy.json").config
    assert again.servers == found.servers
    assert again.servers[0].auth_penalty_exempt == ("192.0.2.0/24", "::1/128")


def test_networks_of_clients_are_checked() -> None:
    [problem] = problems_of({"authPenaltyExempt": ["mail.example"]})
    assert problem.path == "spec.mail.authPenaltyExempt[0]"


@pytest.mark.parametrize(
    ("mail", "listen", "spec", "fix"),
    [
        ({"authBlock": {}}, {"port": 143}, CLUSTER, "use Local, or proxyProtocol for every listener"),
        ({"authBlock": {"failures": 1}}, {"port": 143, "proxyProtocol": True}, {}, "setRealIpFrom"),
        ({"authBlock": {}, "setRealIpFrom": []}, {"port": 143, "proxyProtocol": True}, {}, "setRealIpFrom"),
    ],
)
def test_block_is_refused_where_all_clients_share_an_address(
    mail: dict[str, Any], listen: dict[str, Any], spec: dict[str, Any], fix: str
) -> None:
    [problem] = problems_of(mail, server(listen=[listen]), **spec)
    assert problem.path == "spec.servers[0].authBlock"
    assert fix in problem.reason


@pytest.mark.parametrize(
    ("mail", "listen", "spec"),
    [
        ({"authBlock": {}}, {"port": 143}, {}),
        (
            {"authBlock": {}},
            {"port": 143},
            {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}},
        ),
        ({"authBlock": {}, "setRealIpFrom": ["10.0.0.1"]}, {"port": 143, "proxyProtocol": True}, CLUSTER),
        ({"authBlock": {"failures": 0}}, {"port": 143}, CLUSTER),
        ({"authPenalty": True}, {"port": 143}, CLUSTER),
    ],
)
def test_block_is_accepted_where_clients_have_addresses_of_their_own(
    mail: dict[str, Any], listen: dict[str, Any], spec: dict[str, Any]
) -> None:
    assert problems_of(mail, server(listen=[listen]), **spec) == []
