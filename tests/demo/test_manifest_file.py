# SPDX-License-Identifier: Apache-2.0
"""The manifest is read when it changes, and an error is raised once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_demo.manifest_file import ManifestFile, read_resource

RESOURCE = "kind: MailProxy\nmetadata: {name: edge}\n"


def test_file_is_read_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(RESOURCE)
    manifest = ManifestFile(file, lambda found: {**found, "adapted": True})
    assert manifest.read() == {
        "kind": "MailProxy",
        "metadata": {"name": "edge", "namespace": "default"},
        "adapted": True,
    }
    assert manifest.read() is None
    file.write_text(RESOURCE + "spec: {}\n")
    assert manifest.read() is not None
    file.write_text("kind: [\n")
    with pytest.raises(ConfigError):
        manifest.read()
    assert manifest.read() is None
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        manifest.read()
    assert manifest.read() is None


@pytest.mark.parametrize("text", ["", "kind: Service\n", f"{RESOURCE}---\n{RESOURCE}"])
def test_file_without_exactly_one_resource_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="resources of kind MailProxy"):
        read_resource(text, "edge.yaml")
