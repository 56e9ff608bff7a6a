# SPDX-License-Identifier: Apache-2.0
"""``error_log`` of an ``nginx.conf``: targets, levels, inheritance."""

from __future__ import annotations

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.load import Loaded, load
from mailproxy_config.model import ErrorLog, LogLevel, SyslogServer
from mailproxy_config.nginx.convert import parse_nginx
from mailproxy_config.rendered import dump


def text_of(main: str, mail: str, first: str, second: str) -> str:
    return (
        f"{main}\nevents {{}}\nmail {{ auth_http a; {mail}\n"
        f"server {{ listen 143; {first} }}\nserver {{ listen 110; {second} }}\n}}\n"
    )


def loaded(main: str = "", mail: str = "", first: str = "", second: str = "", source: str = "") -> Loaded:
    text = text_of(main, mail, first, second)
    return load(text.encode(), source=source or "/etc/nginx/nginx.conf")


def test_logs_of_a_level_replace_inherited_logs() -> None:
    config = loaded(
        "error_log /var/log/main.log; error_log stderr crit;",
        "error_log /var/log/mail.log info;",
        first="error_log /var/log/imap.log debug; error_log syslog:server=192.0.2.1 warn;",
    ).config
    assert config.error_logs == (
        ErrorLog(file="/var/log/main.log", level=LogLevel.ERROR),
        ErrorLog(level=LogLevel.CRIT),
    )
    imap, pop3 = config.servers
    assert imap.error_logs == (
        ErrorLog(file="/var/log/imap.log", level=LogLevel.DEBUG),
        ErrorLog(syslog=SyslogServer(address="192.0.2.1"), level=LogLevel.WARN),
    )
    assert pop3.error_logs == (ErrorLog(file="/var/log/mail.log", level=LogLevel.INFO),)


def test_level_without_error_log_logs_to_standard_error() -> None:
    config = loaded(second="error_log /var/log/pop3.log;").config
    assert config.error_logs == (ErrorLog(level=LogLevel.ERROR),)
    assert config.servers[0].error_logs == (ErrorLog(level=LogLevel.ERROR),)
    assert config.servers[1].error_logs == (ErrorLog(file="/var/log/pop3.log"),)


def test_standard_error_alone_adds_no_logs() -> None:
    config = loaded("error_log stderr info;", first="error_log stderr debug;").config
    assert config.error_logs == ()
    assert config.servers[0].error_logs == ()
    assert (config.error_log, config.servers[0].error_log) == (LogLevel.INFO, LogLevel.DEBUG)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("/opt/nginx/conf/nginx.conf", "/opt/nginx/logs/error.log"),
        ("/etc/nginx/nginx.conf", "/etc/nginx/logs/error.log"),
    ],
)
def test_relative_log_path_is_relative_to_the_prefix(source: str, file: str) -> None:
    config = loaded("error_log logs/error.log;", source=source).config
    assert config.error_logs == (ErrorLog(file=file),)


def test_off_is_a_file_name_with_a_notice() -> None:
    found = loaded("error_log off;")
    assert found.config.error_logs == (ErrorLog(file="/etc/nginx/off"),)
    assert [notice.reason for notice in found.notices] == [
        '"off" is the name of a file: logs go to /etc/nginx/off'
    ]


def test_memory_log_is_ignored_with_a_notice() -> None:
    found = loaded("error_log memory:32m debug;")
    assert found.config.error_logs == ()
    assert "memory:32m is ignored" in found.notices[0].reason


def test_log_file_gets_a_notice_only_when_printed() -> None:
    assert loaded("error_log /var/log/a.log;").notices == ()
    text = text_of("error_log /var/log/a.log;", "", "", "")
    manifest = parse_nginx(text, source="/etc/nginx/nginx.conf", only_to_print=True)
    assert [notice.reason for notice in manifest.notices] == [
        "logs go to standard error, not to /var/log/a.log"
    ]


@pytest.mark.parametrize(
    ("directive", "level"),
    [
        ("stderr", LogLevel.ERROR),
        ("stderr debug_mail", LogLevel.DEBUG),
        ("stderr debug_mail debug_event", LogLevel.DEBUG),
        ("stderr emerg", LogLevel.EMERG),
    ],
)
def test_log_levels_of_nginx(directive: str, level: LogLevel) -> None:
    assert loaded(f"error_log {directive};").config.error_log is level


@pytest.mark.parametrize(
    ("directive", "reason"),
    [
        ("stderr warn error", 'duplicate log level "error"'),
        ("stderr loud", 'invalid log level "loud"'),
        ("stderr debug_disk", 'invalid log level "debug_disk"'),
        ("stderr info debug_mail", 'invalid log level "debug_mail"'),
        ("syslog:server=a,facility=x", 'unknown syslog facility "x"'),
        ("syslog:tag=a", "no syslog server specified"),
    ],
)
def test_invalid_error_log_is_reported_with_its_line(directive: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(f"\nerror_log {directive};")
    assert [str(each) for each in raised.value.problems] == [
        f'/etc/nginx/nginx.conf:2: "error_log" directive: {reason}'
    ]


def test_rendered_configuration_keeps_logs() -> None:
    config = loaded("error_log syslog:server=unix:/dev/log,tag=x notice;", first="error_log /a;").config
    assert load(dump(config)).config == config


def test_log_target_changes_the_hash() -> None:
    assert loaded("error_log /a;").hash != loaded("error_log /b;").hash
