# SPDX-License-Identifier: Apache-2.0
"""The sidecar's example as a pod: its mounts do not hide settings of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[3] / "deploy/examples/sidecar.yaml"


def pod() -> dict[str, Any]:
    documents = yaml.safe_load_all(EXAMPLE.read_text())
    (found,) = (one["spec"]["template"]["spec"] for one in documents if one["kind"] == "StatefulSet")
    assert isinstance(found, dict)
    return found


def test_dovecot_settings_are_an_additional_file_read_last() -> None:
    (dovecot,) = (one for one in pod()["containers"] if one["name"] == "dovecot")
    (mount,) = (one for one in dovecot["volumeMounts"] if one["name"] == "settings")
    assert mount["subPath"] == "proxied.conf"
    folder, _, name = mount["mountPath"].rpartition("/")
    assert folder == "/etc/dovecot/conf.d"  # where auth.conf of the image expects the password database
    assert name > "ssl.conf"
