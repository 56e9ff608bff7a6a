# SPDX-License-Identifier: Apache-2.0
"""``limit_conn``, ``limit_req`` and their zones: values, inheritance, and what is refused."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.limits import LimitConn, LimitConnZone, LimitReq, LimitReqZone, variables_of
from mailproxy_config.load import load
from mailproxy_config.manifest import read_manifest
from mailproxy_config.model import ServerConfig
from mailproxy_config.rendered import dump
from support.config_bodies import body, server

ADDR: Final = {"zone": "addr", "key": "$remote_addr", "size": "1m"}
RATE: Final = {**ADDR, "zone": "rate", "rate": "10r/m"}


def problems_of(*servers: Any, **mail: Any) -> list[Problem]:
    problems = Problems()
    read_manifest(body(*servers, mail={"authHttp": "a", **mail}), problems)
    return problems.found


def from_nginx(*mail: str, inner: str = "") -> ServerConfig:
    text = f"mail {{ auth_http a; {' '.join(mail)} server {{ listen 143; {inner} }} }}\nevents {{}}\n"
    return load(text.encode(), source="nginx.conf").config.servers[0]


def refusal(*mail: str) -> str:
    with pytest.raises(ConfigError) as error:
        from_nginx(*mail)
    return str(error.value)


def test_zones_and_limits_are_read_from_nginx_conf() -> None:
    found = from_nginx(
        "limit_conn_zone $remote_addr zone=addr:10m;",
        "limit_conn_zone $remote_user$auth_http_x_class zone=user:64k;",
        "limit_req_zone $remote_addr zone=one:1m rate=10r/m;",
        "limit_conn addr 20; limit_conn user 5;",
        inner="limit_req zone=one burst=5 nodelay;",
    )
    assert found.limit_conn_zone == (
        LimitConnZone(zone="addr", key="$remote_addr", size=10 * 1024 * 1024),
        LimitConnZone(zone="user", key="$remote_user$auth_http_x_class", size=64 * 1024),
    )
    assert found.limit_conn == (
        LimitConn(zone="addr", connections=20),
        LimitConn(zone="user", connections=5),
    )
    assert found.limit_req_zone == (LimitReqZone(zone="one", key="$remote_addr", size=1024 * 1024, rate=10),)
    assert found.limit_req == (LimitReq(zone="one", burst=5, delay=None),)
    assert found.limits_logins


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ("zone=one", LimitReq(zone="one")),
        ("burst=3 zone=one", LimitReq(zone="one", burst=3)),
        ("zone=one burst=3 delay=2", LimitReq(zone="one", burst=3, delay=2)),
    ],
)
def test_parameters_of_limit_req(parameters: str, limit: LimitReq) -> None:
    zone = "limit_req_zone $remote_addr zone=one:1m rate=2r/s;"
    found = from_nginx(zone, f"limit_req {parameters};")
    assert found.limit_req == (limit,)
    assert found.limit_req_zone[0].rate == 120


def test_limits_of_a_server_replace_those_of_mail() -> None:
    mail = "limit_conn_zone $remote_addr zone=a:1m; limit_conn_zone $domain zone=b:1m; limit_conn a 1;"
    assert from_nginx(mail).limit_conn == (LimitConn(zone="a", connections=1),)
    assert from_nginx(mail, inner="limit_conn b 2;").limit_conn == (LimitConn(zone="b", connections=2),)


def test_rendered_configuration_keeps_limits() -> None:
    mail = {
        "authHttp": "a",
        "limitConnZone": [ADDR],
        "limitConn": [{"zone": "addr", "connections": 3}],
        "limitReqZone": [RATE],
        "limitReq": [{"zone": "rate", "burst": 2, "nodelay": True}],
    }
    config = load(repr(body(mail=mail)).replace("'", '"').replace("True", "true").encode()).config
    assert load(dump(config)).config == config
    assert config.servers[0].limit_req == (LimitReq(zone="rate", burst=2, delay=None),)


@pytest.mark.parametrize(
    ("directives", "reason"),
    [
        ("limit_conn_zone $remote_addr zone=a:1k;", "out of range 32k to 16m"),
        ("limit_conn_zone $binary_remote_addr zone=a:1m;", "$remote_addr, $remote_user"),
        ("limit_conn_zone $remote_addr zone=a;", "zone=one:10m"),
        ("limit_conn_zone $remote_addr zone=limit_preauth:1m;", "is the zone of that directive"),
        ("limit_conn_zone $remote_addr zone=a:1m; limit_conn_zone $domain zone=a:1m;", "a is there twice"),
        ("limit_conn_zone $remote_addr zone=a:1m; limit_conn a 0;", "1 to 65535"),
        ("limit_conn_zone $remote_addr zone=a:1m; limit_conn a 65536;", "1 to 65535"),
        ("limit_conn_zone $remote_addr zone=a:1m; limit_conn b 1;", '"limit_conn_zone" has no zone b'),
        ("limit_conn_zone $remote_addr zone=a:1m; limit_conn a 1; limit_conn a 2;", "a is there twice"),
        ("limit_req_zone $auth_http_x zone=a:1m rate=1r/s;", "before there is an answer"),
        ("limit_req_zone $remote_addr zone=a:1m rate=1;", "10r/m"),
        ("limit_req_zone $remote_addr zone=a:1m rate=1r/s; limit_req zone=a burst=1 x=2;", '"x=2"'),
        ("limit_req_zone $remote_addr zone=a:1m rate=1r/s; limit_req burst=1;", "zone"),
        ("limit_req_zone $remote_addr zone=a:1m rate=1r/s; limit_req zone=a delay=1 nodelay;", "with delay"),
        (
            "limit_req_zone $remote_addr zone=a:1m rate=1r/s; limit_conn_zone $remote_addr zone=a:1m;",
            "with different values",
        ),
        (
            "limit_conn_zone $domain zone=a:16m; limit_conn_zone $domain zone=b:16m; "
            "limit_conn_zone $domain zone=c:1m;",
            "more than 32m",
        ),
        ("limit_preauth -1;", "invalid number"),
        ("limit_conn_ipv6_prefix 129;", "16 to 128"),
        ("limit_conn_log_level crit;", "error"),
    ],
)
def test_invalid_limits_are_refused(directives: str, reason: str) -> None:
    assert reason in refusal(directives)


def test_missing_zone_is_reported_where_the_limit_is() -> None:
    limit = {"limitConn": [{"zone": "gone", "connections": 1}]}
    [problem] = problems_of(server(**limit), limitConnZone=[ADDR])
    assert problem.path == "spec.servers[0].limitConn[0].zone"
    [problem] = problems_of(limitConnZone=[ADDR], **limit)
    assert problem.path == "spec.mail.limitConn[0].zone"


def test_limit_of_mail_may_name_a_zone_of_a_server() -> None:
    assert not problems_of(server(limitConnZone=[ADDR]), limitConn=[{"zone": "addr", "connections": 1}])


def test_variables_of_a_joined_key() -> None:
    assert variables_of("$remote_user$remote_addr$auth_http_x_y") == (
        "$remote_user",
        "$remote_addr",
        "$auth_http_x_y",
    )
