# SPDX-License-Identifier: Apache-2.0
"""Types of directive values that refer to files."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config import secret_refs, tls_directives
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.model import ByteCount, SessionCache
from mailproxy_config.secret_refs import CertificateRef, KeyRef, ReferenceKind
from mailproxy_config.value_types import ErrorPath, ValueType

_SECRET = KeyRef(ReferenceKind.SECRET, "tls", "ca.crt")


def read(kind: ValueType, value: Any) -> tuple[object, list[Problem]]:
    path = ErrorPath("x", Problems())
    kind.schema.check(value, "x", path.problems)
    if path.problems:
        return None, path.problems.found
    return path.try_read(lambda: kind.read(value, path)), path.problems.found


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (secret_refs.FILE, {"file": "/a.pem"}, "/a.pem"),
        (secret_refs.FILE, {"secretKeyRef": {"name": "tls", "key": "ca.crt"}}, _SECRET),
        (
            secret_refs.FILE,
            {"configMapKeyRef": {"name": "c", "key": ".k"}},
            KeyRef(ReferenceKind.CONFIG_MAP, "c", ".k"),
        ),
        (secret_refs.FILES, [{"file": "/a"}], ("/a",)),
        (
            tls_directives.CERTIFICATES,
            [{"secretName": "tls"}],
            (
                CertificateRef(
                    KeyRef(ReferenceKind.SECRET, "tls", "tls.crt"),
                    KeyRef(ReferenceKind.SECRET, "tls", "tls.key"),
                ),
            ),
        ),
        (
            tls_directives.CERTIFICATES,
            [{"certificateFile": "/c", "keyFile": "/k"}],
            (CertificateRef("/c", "/k"),),
        ),
        (tls_directives.SESSION_CACHE, ["Disabled"], SessionCache(off=True)),
        (tls_directives.SESSION_CACHE, ["None"], SessionCache()),
        (tls_directives.SESSION_CACHE, ["builtin:5"], SessionCache(builtin=5)),
        (
            tls_directives.SESSION_CACHE,
            ["builtin:20480", "shared:SSL:10m"],
            SessionCache(builtin=20480, shared_name="SSL", shared_size=ByteCount(10_485_760)),
        ),
        (tls_directives.CONF_COMMANDS, [{"name": "Options", "value": "-a"}], (("Options", "-a"),)),
    ],
)
def test_value_is_read_and_written(kind: ValueType, raw: Any, value: Any) -> None:
    assert read(kind, raw) == (value, [])
    assert kind.write(value) == raw


def test_builtin_cache_has_default_size_of_nginx() -> None:
    assert read(tls_directives.SESSION_CACHE, ["builtin"]) == (SessionCache(builtin=20480), [])


_KEY_HINT = "a key: letters, digits, hyphens, underscores and dots, not beginning with two dots"


@pytest.mark.parametrize(
    ("kind", "raw", "path", "reason"),
    [
        (secret_refs.FILE, {}, "x", "exactly one of secretKeyRef, configMapKeyRef and file must be set"),
        (secret_refs.FILE, {"file": "a.pem"}, "x.file", "'a.pem' is not valid: must be an absolute path"),
        (secret_refs.FILE, {"secretKeyRef": {"name": "a"}}, "x.secretKeyRef.key", "is required"),
        (secret_refs.FILE, {"secretKeyRef": {"name": "../a", "key": "k"}}, "x.secretKeyRef.name",
         "'../a' is not valid: must be the name of an object: lower-case letters, digits, hyphens and dots"),
        (secret_refs.FILE, {"secretKeyRef": {"name": "a", "key": "..k"}}, "x.secretKeyRef.key",
         f"'..k' is not valid: must be {_KEY_HINT}"),
        (tls_directives.CERTIFICATES, [{"secretName": "a", "keyFile": "/k"}], "x[0]",
         "set either secretName, or certificateFile together with keyFile"),
        (tls_directives.CERTIFICATES, [{"certificateFile": "/c"}], "x[0]",
         "set either secretName, or certificateFile together with keyFile"),
        (tls_directives.SESSION_CACHE, ["None", "builtin"], "x",
         "takes Disabled, None, or one builtin and one shared cache at most"),
        (tls_directives.SESSION_CACHE, ["builtin", "builtin:1"], "x",
         "takes Disabled, None, or one builtin and one shared cache at most"),
        (tls_directives.SESSION_CACHE, ["shared:a:16k"], "x", "session cache 'a' is too small: at least 32k"),
        (tls_directives.SESSION_CACHE, ["shared:a"], "x[0]",
         "'shared:a' is not valid: must be Disabled, None, builtin[:N] or shared:NAME:SIZE"),
        (tls_directives.CONF_COMMANDS, [{"name": "A"}], "x[0].value", "is required"),
    ],
)  # fmt: skip
def test_invalid_value_is_reported(kind: ValueType, raw: Any, path: str, reason: str) -> None:
    assert read(kind, raw)[1] == [Problem(path, reason)]


@pytest.mark.parametrize(
    ("kind", "words", "raw"),
    [
        (secret_refs.FILE, ["a.pem"], {"file": "a.pem"}),
        (secret_refs.FILES, ["a"], [{"file": "a"}]),
        (tls_directives.CERTIFICATES, ["a"], [{"certificateFile": "a"}]),
        (tls_directives.SESSION_CACHE, ["off"], ["Disabled"]),
        (tls_directives.SESSION_CACHE, ["none"], ["None"]),
        (tls_directives.SESSION_CACHE, ["builtin", "shared:a:1m"], ["builtin", "shared:a:1m"]),
        (tls_directives.CONF_COMMANDS, ["Options", "x y"], [{"name": "Options", "value": "x y"}]),
    ],
)
def test_nginx_arguments_are_parsed(kind: ValueType, words: list[str], raw: object) -> None:
    assert kind.nginx(words) == raw
