# SPDX-License-Identifier: Apache-2.0
"""The table of directives."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mailproxy_config.directives import (
    DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Context,
    Directive,
    Inheritance,
    Level,
    ServerBlock,
    by_field,
    by_name,
)
from mailproxy_config.errors import Problems
from mailproxy_config.model import ListenConfig, Protocol, ServerConfig
from mailproxy_config.value_types import ErrorPath
from support.config_bodies import LEVEL_VALUES
from support.configs import NOT_OF_NGINX

# Every directive of the eight mail modules on nginx's pages, except blocks.
NGINX = {
    "mail_core": "error_log listen max_errors protocol resolver resolver_timeout server_name timeout",
    "mail_auth_http": "auth_http auth_http_header auth_http_pass_client_cert auth_http_timeout",
    "mail_proxy": (
        "proxy proxy_buffer proxy_pass_error_message proxy_protocol proxy_smtp_auth proxy_timeout xclient"
    ),
    "mail_realip": "set_real_ip_from",
    "mail_ssl": (
        "ssl_certificate ssl_certificate_compression ssl_certificate_key ssl_ciphers ssl_client_certificate"
        " ssl_conf_command ssl_crl ssl_dhparam ssl_ecdh_curve ssl_password_file ssl_prefer_server_ciphers"
        " ssl_protocols ssl_session_cache ssl_session_ticket_key ssl_session_tickets ssl_session_timeout"
        " ssl_trusted_certificate ssl_verify_client ssl_verify_depth starttls"
    ),
    "mail_imap": "imap_auth imap_capabilities imap_client_buffer",
    "mail_pop3": "pop3_auth pop3_capabilities",
    "mail_smtp": "smtp_auth smtp_capabilities smtp_client_buffer smtp_greeting_delay",
}


@pytest.mark.parametrize("module", NGINX)
def test_every_directive_of_nginx_has_a_row(module: str) -> None:
    found = [row.name for row in DIRECTIVES if row.module == module and row.name not in NOT_OF_NGINX]
    assert sorted(found) == sorted(NGINX[module].split())


def test_extension_is_marked_and_has_its_own_name() -> None:
    assert {row.name for row in DIRECTIVES if row.is_ours} == NOT_OF_NGINX
    assert NOT_OF_NGINX.isdisjoint(name for names in NGINX.values() for name in names.split())


def test_server_config_has_a_field_for_every_directive() -> None:
    rows = {row.name for row in LEVEL_DIRECTIVES + SERVER_DIRECTIVES} - {"proxy"}
    assert {field.name for field in fields(ServerConfig)} - {"name", "error_logs", "upstream_groups"} == rows


@pytest.mark.parametrize("row", DIRECTIVES, ids=lambda row: row.name)
def test_description_is_short_sentences(row: Directive) -> None:
    assert row.meaning.endswith(".")
    assert row.meaning.count(". ") <= 1
    assert len(row.meaning) <= 130


@pytest.mark.parametrize("row", DIRECTIVES, ids=lambda row: row.name)
def test_default_is_read_and_written_unchanged(row: Directive) -> None:
    value = row.builtin()
    assert (value is None) is (row.default in (None, {"mode": "Disabled"}))
    if row.default is not None:
        again = row.type.read(row.type.write(value), ErrorPath(row.field, Problems()))
        assert again == value


@pytest.mark.parametrize(
    ("field", "raw"), [(field, raw) for field, values in LEVEL_VALUES.items() for raw in values]
)
def test_value_is_read_and_written_unchanged(field: str, raw: object) -> None:
    kind, problems = by_field(LEVEL_DIRECTIVES)[field].type, Problems()
    kind.schema.check(raw, field, problems)
    value = kind.read(raw, ErrorPath(field, problems))
    if value is not None or field == "resolver":
        written = kind.write(value)
        kind.schema.check(written, field, problems)
        assert kind.read(written, ErrorPath(field, problems)) == value
    assert problems.found == []


@pytest.mark.parametrize("name", ["mäil", "mail example"])
def test_server_name_must_be_ascii_without_spaces(name: str) -> None:
    with pytest.raises(ValueError, match="must be ASCII without spaces"):
        by_name(LEVEL_DIRECTIVES)["server_name"].type.read(name, ErrorPath("serverName", Problems()))


def test_contexts_of_directives() -> None:
    contexts = {row.name: row.contexts for row in (*MAIN_DIRECTIVES, *SERVER_DIRECTIVES)}
    assert contexts == {
        "worker_processes": (Context.MAIN,),
        "worker_connections": (Context.EVENTS,),
        "error_log": (Context.MAIN,),
        "protocol": (Context.SERVER,),
        "listen": (Context.SERVER,),
        "server_names": (Context.SERVER,),
    }
    assert {row.contexts for row in LEVEL_DIRECTIVES} == {(Context.MAIL, Context.SERVER)}


def test_appending_directives_are_lists() -> None:
    assert {row.name for row in LEVEL_DIRECTIVES if row.type.appends} <= {
        row.name for row in LEVEL_DIRECTIVES if row.inheritance is Inheritance.LIST
    }


def test_names_and_fields_are_unique() -> None:
    assert len(by_name(LEVEL_DIRECTIVES + SERVER_DIRECTIVES)) == len(LEVEL_DIRECTIVES + SERVER_DIRECTIVES)
    assert len(by_field(LEVEL_DIRECTIVES + SERVER_DIRECTIVES)) == len(LEVEL_DIRECTIVES + SERVER_DIRECTIVES)


_EMPTY = Level(values={}, given=frozenset())


def test_server_block_has_its_own_listeners_and_protocol() -> None:
    own = Level(
        values={"listen": (ListenConfig(port=143),), "protocol": Protocol.IMAP},
        given=frozenset({"listen", "protocol"}),
    )
    block = ServerBlock(name="a", path="spec.servers[0]", own=own, level=_EMPTY)
    assert (block.listen, block.protocol) == ((ListenConfig(port=143),), Protocol.IMAP)


def test_server_block_without_listeners_and_protocol() -> None:
    block = ServerBlock(name="a", path="spec.servers[0]", own=_EMPTY, level=_EMPTY)
    assert (block.listen, block.protocol) == ((), None)
