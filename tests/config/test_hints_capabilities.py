# SPDX-License-Identifier: Apache-2.0
"""Hints about capabilities that nginx accepts and clients understand differently."""

from __future__ import annotations

import pytest

from mailproxy_config.manifest import parse_manifest
from mailproxy_config.nginx.convert import parse_nginx
from support.config_bodies import body, server


def notices_of(line: str) -> list[str]:
    text = f"mail {{ auth_http a;\n{line}\nserver {{ listen 143; }} }}"
    return list(map(str, parse_nginx(text, source="n.conf").notices))


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("smtp_capabilities SIZE 50000000 DSN;",
         '"50000000": is a capability of its own; if it belongs to "SIZE", put both into one pair of quotes: '
         '"SIZE 50000000"'),
        ('smtp_capabilities "250-STARTTLS";',
         '"250-STARTTLS": the proxy adds STARTTLS itself where "starttls" is on'),
        ('smtp_capabilities "250-8BITMIME";',
         '"250-8BITMIME": write "8BITMIME" alone; the proxy writes what belongs before it'),
        ('smtp_capabilities "250 SIZE 5";',
         '"250 SIZE 5": write "SIZE 5" alone; the proxy writes what belongs before it'),
        ('smtp_capabilities "AUTH PLAIN LOGIN";',
         '"AUTH PLAIN LOGIN": the proxy writes the line AUTH itself, from "smtp_auth"'),
        ('smtp_capabilities "AUTH=PLAIN";',
         '"AUTH=PLAIN": the proxy writes the line AUTH itself, from "smtp_auth"'),
        ("smtp_capabilities starttls;", '"starttls": the proxy adds STARTTLS itself where "starttls" is on'),
        ('smtp_capabilities "8BITMIME DSN";',
         '"8BITMIME DSN": is one line; put each capability into quotes of its own'),
        ("pop3_capabilities STLS;", '"STLS": the proxy adds STLS itself where "starttls" is on'),
        ('pop3_capabilities "SASL PLAIN";',
         '"SASL PLAIN": the proxy writes the line SASL itself, from "pop3_auth"'),
        ("pop3_capabilities EXPIRE 0;",
         '"0": is a capability of its own; if it belongs to "EXPIRE", '
         'put both into one pair of quotes: "EXPIRE 0"'),
        ("imap_capabilities IMAP4rev1 ID IDLE;",
         '"ID": clients send ID before they log in, and the proxy refuses it and counts an error'),
        ("imap_capabilities IMAP4rev1 AUTH=PLAIN;",
         '"AUTH=PLAIN": the proxy adds AUTH= itself, from "imap_auth"'),
        ('imap_capabilities "IMAP4rev1 STARTTLS";',
         '"IMAP4rev1 STARTTLS": the proxy adds STARTTLS itself where "starttls" is on'),
        ("imap_capabilities IDLE UIDPLUS;",
         "names neither IMAP4rev1 nor IMAP4rev2; clients expect one of them"),
    ],
)  # fmt: skip
def test_unusual_capability_gets_a_hint(line: str, hint: str) -> None:
    name = line.split(maxsplit=1)[0]
    assert notices_of(line) == [f'n.conf:2: "{name}": {hint}']


@pytest.mark.parametrize(
    "line",
    [
        # the example of nginx's documentation, and what servers announce
        "imap_capabilities IMAP4rev1 UIDPLUS IDLE LITERAL+ QUOTA;",
        'imap_capabilities "IMAP4rev1" "SASL-IR" "ENABLE" "NAMESPACE" "COMPRESS=DEFLATE";',
        'imap_capabilities "IMAP4rev2 IDLE";',
        "pop3_capabilities LAST TOP USER PIPELINING UIDL RESP-CODES;",
        'pop3_capabilities "EXPIRE NEVER" "IMPLEMENTATION x";',
        'smtp_capabilities "SIZE 10485760" ENHANCEDSTATUSCODES 8BITMIME DSN CHUNKING;',
        "smtp_capabilities SIZE;",
    ],
)
def test_usual_capability_gets_no_hint(line: str) -> None:
    assert notices_of(line) == []


def test_hint_for_manifest_uses_field_names() -> None:
    found = parse_manifest(body(server(smtpCapabilities=["SIZE 5", "AUTH PLAIN"]), mail={"authHttp": "a"}))
    assert list(map(str, found.notices)) == [
        'spec.servers[0].smtpCapabilities[1]: "AUTH PLAIN": '
        'the proxy writes the line AUTH itself, from "smtpAuth"'
    ]
