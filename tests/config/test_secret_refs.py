# SPDX-License-Identifier: Apache-2.0
"""Paths of mounted Secrets and ConfigMaps."""

from __future__ import annotations

from mailproxy_config.secret_refs import KeyRef, Mounts, ReferenceKind


def test_paths_of_mounted_keys() -> None:
    mounts = Mounts()
    assert (
        mounts.path(KeyRef(ReferenceKind.SECRET, "tls", "tls.crt"))
        == "/etc/mailproxy-refs/secrets/tls/tls.crt"
    )
    assert mounts.path(KeyRef(ReferenceKind.CONFIG_MAP, "dh", "p")) == "/etc/mailproxy-refs/configmaps/dh/p"


def test_path_is_unchanged_and_root_is_configurable() -> None:
    mounts = Mounts(root="/tmp/refs")
    assert mounts.path("/etc/x.pem") == "/etc/x.pem"
    assert mounts.directory(ReferenceKind.SECRET, "a") == "/tmp/refs/secrets/a"
