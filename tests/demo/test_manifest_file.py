# SPDX-License-Identifier: Apache-2.0
"""The watched file: read when it changes, and complained about once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_demo.manifest_file import FileSource, read_resource

RESOURCE = "kind: MailProxy\nmetadata: {name: edge}\n"


def test_a_file_is_told_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(RESOURCE)
    source = FileSource(file, lambda body: {**body, "adapted": True})
    assert source.read() == {
        "kind": "MailProxy",
        "metadata": {"name": "edge", "namespace": "default"},
        "adapted": True,
    }
    assert source.read() is None
    file.write_text(RESOURCE + "spec: {}\n")
    assert source.read() is not None
    file.write_text("kind: [\n")
    with pytest.raises(ConfigError):
        source.read()
    assert source.read() is None
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        source.read()
    assert source.read() is None


@pytest.mark.parametrize("text", ["", "kind: Service\n", f"{RESOURCE}---\n{RESOURCE}"])
def test_there_must_be_exactly_one_resource(text: str) -> None:
    with pytest.raises(ConfigError, match="resources of kind MailProxy"):
        read_resource(text, "edge.yaml")
