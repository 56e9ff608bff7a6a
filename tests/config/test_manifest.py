# SPDX-License-Identifier: Apache-2.0
"""Reading and validating a ``MailProxy`` resource."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.kubernetes import PortStrategy
from mailproxy_config.manifest import MAIL, SERVER, SPEC, Metadata, parse_manifest, read_manifest
from mailproxy_config.model import Protocol
from support.config_bodies import bodies, body, server
from support.fuzz import examples


def problems_of(resource: dict[str, Any]) -> list[str]:
    problems = Problems()
    read_manifest(resource, problems)
    return list(map(str, problems))


def test_manifest_is_read() -> None:
    found = parse_manifest(body(server(timeout="5s"), portStrategy="HighPort", workers="auto"))
    assert found.metadata == Metadata(name="edge", namespace="mail", generation=7, uid="u-1")
    assert found.main.values == {"worker_processes": None}
    assert found.mail.given == {"auth_http"}
    assert (found.servers[0].name, found.servers[0].level.values) == ("imap", {"timeout": 5.0})
    assert found.deployment.port_strategy is PortStrategy.HIGH_PORT
    assert found.notices == ()


def test_null_fields_are_absent_except_in_passed_through_objects() -> None:
    resource = body(server(protocol=None, timeout=None), pod={"affinity": {"a": None}}, image=None)
    found = parse_manifest(resource)
    assert found.raw["spec"]["pod"] == {"affinity": {"a": None}}
    assert "image" not in found.raw["spec"]
    assert found.servers[0].level.given == frozenset()


def test_explicit_protocol_overrides_derived_one() -> None:
    assert parse_manifest(body(server(port=143, protocol="smtp"))).servers[0].protocol is Protocol.SMTP


def test_ignored_field_gets_a_notice() -> None:
    resource = body(server(proxy=False), mail={"authHttp": "a", "setRealIpFrom": ["10.0.0.1/8"]})
    assert parse_manifest(resource).notices == (
        Problem("spec.mail.setRealIpFrom[0]", "low address bits of 10.0.0.1/8 are meaningless"),
        Problem("spec.servers[0].proxy", "has no effect, as in nginx"),
    )


@pytest.mark.parametrize(
    ("resource", "problems"),
    [
        ({}, [
            "apiVersion: must be mailproxy.dev/v1alpha1", "kind: must be MailProxy",
            "metadata.name: is required, as text", "spec: is required",
        ]),
        (body() | {"spec": []}, ["spec: must be an object, not a list"]),
        (body() | {"sepc": {}, "status": {}}, ["sepc: unknown field; did you mean spec?"]),
        (body() | {"metadata": {"name": "E" * 51}}, [
            "metadata.name: must be no longer than 50 characters",
            "metadata.name: must start with a letter and contain only lower-case letters, "
            "digits and hyphens: a Service is named after it",
        ]),
        (body() | {"spec": {}}, ["spec.servers: is required"]),
        (body() | {"spec": {"servers": {}}}, ["spec.servers: must be a list, not an object"]),
        (body() | {"spec": {"servers": []}}, ["spec.servers: has 0 items, which is out of range 1 to 32"]),
        (body() | {"spec": {"servers": ["x"]}}, [
            "spec.servers[0]: must be an object with fields, not text",
        ]),
        (body(mail=None, servres=[]), ["spec.servres: unknown field; did you mean servers?"]),
        (body() | {"spec": {"mail": [], "servers": [server(authHttp="a")]}}, [
            "spec.mail: must be an object with fields, not a list",
        ]),
        (body({"listen": [{"port": 143}]}), ["spec.servers[0].name: is required"]),
        (body({"name": "A_b", "listen": [{"port": 143}]}), [
            "spec.servers[0].name: 'A_b' is not valid: must be lower-case letters, digits and hyphens, "
            "with a letter or digit at both ends",
        ]),
        (body(server("a", 99999), server("b", proxyBufer="4k", tiemout=1)), [
            "spec.servers[0].listen[0].port: 99999 is out of range 1 to 65535",
            "spec.servers[1].proxyBufer: unknown field; did you mean proxyBuffer?",
            "spec.servers[1].tiemout: unknown field; did you mean timeout?",
        ]),
    ],
)  # fmt: skip
def test_invalid_manifest_is_rejected(resource: dict[str, Any], problems: list[str]) -> None:
    assert problems_of(resource) == problems


def test_all_problems_are_reported_together() -> None:
    listen = [{"port": 0}, {"address": "127...1", "port": 144}, {"port": 143, "proto": 1}]
    resource = body(
        server(listen=listen, smtpCapabilities=["a\r\nb", "é", 5]),
        mail={"starttls": True, "imapClientBuffer": 10, "timeout": "1:30"},
        wrokers=3,
        drain={"delay": "x"},
    )
    assert problems_of(resource) == [
        "spec.wrokers: unknown field; did you mean workers?",
        "spec.drain.delay: must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds",
        "spec.mail.starttls: must be text, not a boolean (one of Disabled, Enabled, Only); write Enabled",
        "spec.mail.timeout: must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds",
        "spec.mail.imapClientBuffer: 10 is too small: a buffer has at least 128 bytes",
        "spec.servers[0].listen[0].port: 0 is out of range 1 to 65535",
        "spec.servers[0].listen[2].proto: unknown field",
        "spec.servers[0].smtpCapabilities[0]: "
        "a capability must not contain control characters such as CR or LF",
        "spec.servers[0].smtpCapabilities[2]: must be text, not a number",
        "spec.servers[0].listen[1].address: invalid IPv4 address '127...1'",
        "spec.servers[0].smtpCapabilities[1]: a capability must be ASCII",
        "spec.servers[0].authHttp: is required: set it here or in spec.mail",
    ]


def test_parse_manifest_raises_all_problems() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_manifest({"spec": {"mail": {"authHttp": "x"}, "servers": [server(port=0)]}})
    assert len(raised.value.problems) == 4


def test_header_value_is_not_in_messages() -> None:
    mail = {"authHttp": "a", "authHttpHeader": [{"name": "X", "value": "hush\n"}]}
    with pytest.raises(ConfigError) as raised:
        parse_manifest(body(mail=mail))
    assert "hush" not in str(raised.value)


def test_length_limits_of_lists() -> None:
    servers = [server(f"s{index}", 1000 + index, protocol="imap") for index in range(33)]
    assert problems_of(body(*servers)) == ["spec.servers: has 33 items, which is out of range 1 to 32"]
    listen = [{"port": 1000 + index} for index in range(17)]
    assert problems_of(body(server(listen=listen, protocol="imap"))) == [
        "spec.servers[0].listen: has 17 items, which is out of range 1 to 16"
    ]
    words = ["A"] * 33
    assert problems_of(body(server(imapCapabilities=words))) == [
        "spec.servers[0].imapCapabilities: has 33 items, which is out of range 0 to 32"
    ]


def test_largest_manifest_is_accepted() -> None:
    servers = [
        server(
            f"s{index}",
            protocol="smtp",
            listen=[{"port": 10_000 + 16 * index + at} for at in range(16)],
            smtpCapabilities=["x" * 256] * 32,
        )
        for index in range(32)
    ]
    assert len(parse_manifest(body(*servers)).servers) == 32


def _walk(schema: dict[str, Any], path: str = "spec") -> list[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    found = [(path, schema)]
    for name, inner in schema.get("properties", {}).items():
        found += _walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            found += _walk(schema[key], f"{path}[]")
    return found


def test_every_list_map_and_text_has_a_limit_in_the_schema() -> None:
    unbounded = [
        path
        for path, schema in _walk(SPEC.openapi())
        if (schema.get("type") == "string" and not {"maxLength", "enum"} & schema.keys())
        or (schema.get("type") == "array" and "maxItems" not in schema)
        or (schema.get("x-kubernetes-int-or-string") and "maxLength" not in schema)
    ]
    assert unbounded == []


def test_no_directive_has_a_default_in_the_schema() -> None:
    defaults = [
        path for level in (MAIL, SERVER) for path, schema in _walk(level.openapi()) if "default" in schema
    ]
    assert defaults == []


def test_every_directive_has_a_description_in_the_schema() -> None:
    for level in (MAIL, SERVER, SPEC):
        properties = level.openapi()["properties"]
        assert [name for name, schema in properties.items() if not schema.get("description")] == []


@given(bodies())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
def test_generated_valid_manifest_is_accepted(resource: dict[str, Any]) -> None:
    assert problems_of(resource) == []


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(bodies(), st.data())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_manifest_raises_only_config_errors(resource: dict[str, Any], data: st.DataObject) -> None:
    level = data.draw(
        st.sampled_from([resource["spec"], resource["spec"]["mail"], *resource["spec"]["servers"]])
    )
    known = [*SPEC.fields, *SERVER.fields]
    level[data.draw(st.sampled_from(known))] = data.draw(_JUNK)
    for problem in problems_of(resource):
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        # YAML parses on and off as true and false
        ({"starttls": True},
         "starttls: must be text, not a boolean (one of Disabled, Enabled, Only); write Enabled"),
        ({"starttls": False},
         "starttls: must be text, not a boolean (one of Disabled, Enabled, Only); write Disabled"),
        ({"starttls": "on"}, "starttls: 'on' is not one of Disabled, Enabled, Only; write Enabled"),
        ({"starttls": "only"}, "starttls: 'only' is not one of Disabled, Enabled, Only; write Only"),
        ({"proxyProtocol": True},
         "proxyProtocol: must be text, not a boolean (one of Disabled, V1, V2); write V1"),
        ({"proxyProtocol": "v2"}, "proxyProtocol: 'v2' is not one of Disabled, V1, V2; write V2"),
        ({"sslVerifyClient": True}, "sslVerifyClient: must be text, not a boolean "
         "(one of Disabled, Required, Optional, OptionalNoCA); write Required"),
        ({"xclient": "off"}, "xclient: must be true or false, not text; write false, without quotes"),
        # fields that are one word in nginx
        ({"resolver": False}, "resolver: must be an object with fields, not a boolean; "
         "write {mode: Disabled}, {mode: System} or {addresses: [ADDRESS]}"),
        ({"errorLog": "info"}, "errorLog: must be an object with fields, not text; write {level: info}"),
        ({"sslDhparam": "/x"}, "sslDhparam: must be an object with fields, not text; "
         "write {file: /PATH} or {secretKeyRef: {name: NAME, key: KEY}}"),
        ({"sslCertificate": ["/x"]}, "sslCertificate[0]: must be an object with fields, not text; "
         "write {secretName: NAME} or {certificateFile: /PATH, keyFile: /PATH}"),
        ({"imapAuth": "plain"}, "imapAuth: must be a list, not text; put it into [ ]"),
        ({"listen": [143]}, "listen[0]: must be an object with fields, not a number; write {port: 143}"),
        ({"listen": [{"port": 143, "soKeepalive": True}]},
         "listen[0].soKeepalive: must be an object with fields, not a boolean; "
         "write {enabled: true}, {enabled: false} or {idle: 30m}"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_nginx_notation_gets_a_hint(fields: dict[str, object], problem: str) -> None:
    resource = body({**server(), **fields}, mail={"authHttp": "a"})
    assert problems_of(resource) == [f"spec.servers[0].{problem}"]


@pytest.mark.parametrize(
    ("mail", "block", "problem"),
    [
        ({"authHtp": "a"}, {}, "spec.mail.authHtp: unknown field; did you mean authHttp?"),
        ({"authHttp": "a"}, {"lisen": [{"port": 143}]},
         "spec.servers[0].lisen: unknown field; did you mean listen?"),
        ({"authHttp": "a"}, {"listen": [{"port": 5}], "protocl": "imap"},
         "spec.servers[0].protocl: unknown field; did you mean protocol?"),
        ({"authHttp": "a", "sslCertificates": []}, {"listen": [{"port": 993, "ssl": True}]},
         "spec.mail.sslCertificates: unknown field; did you mean sslCertificate?"),
    ],
)  # fmt: skip
def test_consequences_of_an_unknown_field_are_not_reported(
    mail: dict[str, object], block: dict[str, object], problem: str
) -> None:
    one = {"name": "one", **(block or {"listen": [{"port": 143}]})}
    assert problems_of(body(one, mail=mail)) == [problem]
