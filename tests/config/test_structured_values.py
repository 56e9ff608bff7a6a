# SPDX-License-Identifier: Apache-2.0
"""Types of directive values with fields."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config import structured_values
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.model import AuthHttp, AuthHttpHeader, LogLevel, ResolverConfig, Seconds
from mailproxy_config.secret_refs import HeaderRef, KeyRef, ReferenceKind
from mailproxy_config.value_types import ErrorPath, ValueType

_SECRET = {"name": "X-Key", "valueFrom": {"secretKeyRef": {"name": "auth", "key": "key"}}}


def read(kind: ValueType, value: Any) -> tuple[object, list[Problem]]:
    """Check the schema of a value, then read it; return the value and its problems."""
    path = ErrorPath("x", Problems())
    kind.schema.check(value, "x", path.problems)
    if path.problems:
        return None, path.problems.found
    return path.try_read(lambda: kind.read(value, path)), path.problems.found


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (structured_values.AUTH_HTTP, "http://auth:9000/x", AuthHttp(host="auth", port=9000, uri="/x")),
        (structured_values.AUTH_HTTP, "https://auth:443/", AuthHttp(host="auth", port=443, tls=True)),
        (
            structured_values.AUTH_HTTP,
            "http://unix:/a:/u",
            AuthHttp(host="localhost", unix_path="/a", uri="/u"),
        ),
        (structured_values.HEADERS, [{"name": "X", "value": ""}], (AuthHttpHeader(name="X", value=""),)),
        (
            structured_values.HEADERS,
            [_SECRET],
            (HeaderRef("X-Key", KeyRef(ReferenceKind.SECRET, "auth", "key")),),
        ),
        (structured_values.RESOLVER, {"mode": "Disabled"}, None),
        (
            structured_values.RESOLVER,
            {"mode": "System", "ipv4": False},
            ResolverConfig(system=True, ipv4=False),
        ),
        (
            structured_values.RESOLVER,
            {"addresses": ["ns:53"], "valid": "30s", "ipv6": False, "statusZone": "z"},
            ResolverConfig(addresses=("ns:53",), valid=Seconds(30.0), ipv6=False, status_zone="z"),
        ),
        (structured_values.ERROR_LOG, {"level": "warn"}, LogLevel.WARN),
        (structured_values.PEERS, ["10.0.0.0/8", "unix:"], ("10.0.0.0/8", "unix:")),
    ],
)
def test_value_is_read_and_written(kind: ValueType, raw: Any, value: Any) -> None:
    assert read(kind, raw) == (value, [])
    assert kind.write(value) == raw


def test_resolver_off_is_disabled_and_empty_error_log_is_none() -> None:
    assert read(structured_values.RESOLVER, {"mode": "Off"}) == (None, [])
    assert read(structured_values.ERROR_LOG, {}) == (None, [])


@pytest.mark.parametrize(
    ("kind", "raw", "path", "reason"),
    [
        (structured_values.AUTH_HTTP, "ftp://x", "x",
         "authHttp must be [http://]host[:port][/path] or an https:// URL"),
        (structured_values.AUTH_HTTP, "a\r\nb", "x",
         "authHttp must not contain control characters such as CR or LF"),
        (structured_values.AUTH_HTTP, "a:b", "x", "invalid port 'b'"),
        (structured_values.HEADERS, [{"name": "X"}], "x[0]",
         "exactly one of value and valueFrom must be set"),
        (structured_values.HEADERS, [{"name": "A B", "value": ""}], "x[0].name",
         "'A B' is not valid: must be the name of a header, without spaces and colons"),
        (structured_values.HEADERS, [{"name": "X", "value": "hush\r\n"}], "x[0].value",
         "a header value must not contain control characters such as CR or LF"),
        (structured_values.HEADERS, [{"name": "X", "value": 5}], "x[0].value", "must be text, not a number"),
        (structured_values.RESOLVER, {}, "x", "resolver takes either addresses or mode (Disabled, System)"),
        (structured_values.RESOLVER, {"mode": "System", "ipv4": False, "ipv6": False}, "x",
         "resolver: ipv4 and ipv6 cannot both be false"),
        (structured_values.RESOLVER, {"addresses": ["a", "::1"]}, "x.addresses[1]", "no host"),
        (structured_values.RESOLVER, {"mode": "System", "valid": "99999y"}, "x.valid",
         "99999y is more than 2147483647 seconds"),
        (structured_values.ERROR_LOG, {"level": "all"}, "x.level",
         "'all' is not one of debug, info, notice, warn, error, crit, alert, emerg"),
        (structured_values.PEERS, ["10.0.0.0/33"], "x[0]",
         "'10.0.0.0/33' is neither an address, a CIDR range, unix: nor a host name"),
    ],
)  # fmt: skip
def test_invalid_value_is_reported(kind: ValueType, raw: Any, path: str, reason: str) -> None:
    assert read(kind, raw)[1] == [Problem(path, reason)]


def test_host_bits_of_network_get_a_notice() -> None:
    problems = Problems()
    assert structured_values.PEERS.read(["10.1.2.3/8"], ErrorPath("x", problems)) == ("10.0.0.0/8",)
    assert problems.notices == [Problem("x[0]", "low address bits of 10.1.2.3/8 are meaningless")]


@pytest.mark.parametrize(
    ("kind", "words", "raw"),
    [
        (structured_values.HEADERS, ["X", "a b"], [{"name": "X", "value": "a b"}]),
        (structured_values.RESOLVER, ["off", "nonsense"], {"mode": "Disabled"}),
        (
            structured_values.RESOLVER,
            ["127.0.0.1", "[::1]:5353", "valid=30s", "ipv6=off", "ipv4=on", "status_zone=z"],
            {
                "addresses": ["127.0.0.1", "[::1]:5353"],
                "valid": "30s",
                "ipv6": False,
                "ipv4": True,
                "statusZone": "z",
            },
        ),
        (structured_values.ERROR_LOG, ["/var/log/x"], {"level": "error"}),
        (structured_values.ERROR_LOG, ["/var/log/x", "info"], {"level": "info"}),
        (structured_values.ERROR_LOG, ["stderr", "debug_mail"], {"level": "debug"}),
        (structured_values.PEERS, ["10.0.0.0/8"], ["10.0.0.0/8"]),
    ],
)
def test_nginx_arguments_are_parsed(kind: ValueType, words: list[str], raw: object) -> None:
    assert kind.nginx(words) == raw


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        (structured_values.RESOLVER, ["valid=30s"], "no name servers defined"),
        (structured_values.RESOLVER, ["a", "ipv6=maybe"], "invalid parameter: ipv6=maybe"),
        (structured_values.ERROR_LOG, ["stderr", "loud"], 'invalid log level "loud"'),
    ],
)
def test_invalid_nginx_arguments_are_rejected(kind: ValueType, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kind.nginx(words)
