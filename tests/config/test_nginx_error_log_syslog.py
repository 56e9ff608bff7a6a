# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``error_log syslog:``."""

from __future__ import annotations

import pytest

from mailproxy_config.model import SyslogServer
from mailproxy_config.nginx.error_log import parse_syslog_server


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("server=192.0.2.1", SyslogServer(address="192.0.2.1")),
        ("server=logs.example:5140", SyslogServer(address="logs.example", port=5140)),
        ("server=[2001:db8::1]:12345", SyslogServer(address="2001:db8::1", port=12345)),
        ("server=[::1]", SyslogServer(address="::1")),
        ("server=unix:/dev/log,nohostname", SyslogServer(unix_path="/dev/log", has_hostname=False)),
        (
            "facility=local0,severity=debug,tag=edge_1,server=192.0.2.1",
            SyslogServer(address="192.0.2.1", facility="local0", tag="edge_1"),
        ),
        ("server=192.0.2.1,tag=", SyslogServer(address="192.0.2.1", tag="")),
    ],
)
def test_syslog_parameters_are_parsed(text: str, server: SyslogServer) -> None:
    assert parse_syslog_server(text) == server


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'unknown syslog parameter ""'),
        ("tag=x", "no syslog server specified"),
        ("server=", 'syslog server "": no host'),
        ("server=192.0.2.1:0", "out of range"),
        ("server=192.0.2.1:x", "invalid port"),
        ("server=[::1", "invalid host"),
        ("server=unix:", "no path in the unix domain socket"),
        ("server=a,server=b", 'duplicate syslog "server"'),
        ("server=a,facility=local8", 'unknown syslog facility "local8"'),
        ("server=a,severity=loud", 'unknown syslog severity "loud"'),
        ("server=a,tag=a-b", "only allows alphanumeric characters and underscore"),
        ("server=a,tag=" + "x" * 33, "length exceeds 32"),
        ("server=a,colour=red", 'unknown syslog parameter "colour=red"'),
    ],
)
def test_invalid_syslog_parameter_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(").replace("[", r"\[")):
        parse_syslog_server(text)
