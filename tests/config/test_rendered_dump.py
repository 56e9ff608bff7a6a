# SPDX-License-Identifier: Apache-2.0
"""Rendering a configuration as canonical JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings

from mailproxy_config.compile import compile_proxy
from mailproxy_config.load import load
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import ProxyConfig
from mailproxy_config.rendered import config_hash, dump
from support.config_bodies import bodies, body, server
from support.fuzz import examples


def config(**spec: object) -> ProxyConfig:
    return compile_proxy(parse_manifest(body(server(imapAuth=["login", "plain", "cram-md5"]), **spec)))


def test_rendered_format() -> None:
    document = json.loads(dump(config(), generation=3))
    assert document.keys() == {"format", "formatVersion", "generation", "config"}
    assert (document["format"], document["formatVersion"]) == ("mailproxy.dev/proxy-configuration", 1)
    assert document["generation"] == 3
    inner = document["config"]["servers"][0]
    assert inner["imap_auth"] == ["cram-md5", "login", "plain"]  # sets are sorted
    assert inner["server_name"] == ""
    assert inner["resolver"] is None
    assert inner["listen"][0]["port"] == 143


def test_whole_seconds_are_integers() -> None:
    assert b'"delay": 5,' in dump(config())
    assert b'"delay": 0.25,' in dump(config(drain={"delay": "250ms"}))


def test_equal_configurations_have_equal_bytes() -> None:
    assert dump(config()) == dump(config())
    assert dump(config()).endswith(b"}\n")


def test_hash_does_not_include_the_generation() -> None:
    one = config()
    assert config_hash(one) == config_hash(config())
    assert len(config_hash(one)) == 64
    assert config_hash(one) != config_hash(replace(one, worker_connections=513))
    loaded = (load(dump(one)), load(dump(one, generation=9)))
    assert {each.hash for each in loaded} == {config_hash(one)}
    assert [each.generation for each in loaded] == [0, 9]


@given(bodies())
@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.too_slow])
def test_rendered_configuration_loads_unchanged(resource: dict[str, Any]) -> None:
    compiled = compile_proxy(parse_manifest(resource))
    loaded = load(dump(compiled, generation=7))
    assert loaded.config == compiled
    assert (loaded.hash, loaded.generation) == (config_hash(compiled), 7)
    assert dump(loaded.config, generation=7) == dump(compiled, generation=7)
