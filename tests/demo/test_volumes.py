# SPDX-License-Identifier: Apache-2.0
"""Volumes have the kubelet's layout, and are replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailproxy_demo.volumes import Files, NotMountable, read_object, volume_files, write_volume


def visible_files(directory: Path) -> dict[str, bytes]:
    entries = [path for path in directory.iterdir() if not path.name.startswith("..")]
    files = [file for entry in entries for file in (entry.rglob("*") if entry.is_dir() else [entry])]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files if file.is_file()}


def test_volume_is_symlinks_through_one_symlink(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    assert write_volume(volume, {"a": b"1", "deep/b": b"2"})
    assert visible_files(volume) == {"a": b"1", "deep/b": b"2"}
    assert (volume / "a").readlink() == Path("..data/a")
    first = (volume / "..data").readlink()
    assert not write_volume(volume, {"a": b"1", "deep/b": b"2"})
    assert (volume / "..data").readlink() == first
    assert write_volume(volume, {"a": b"3", "c": b"4"})
    assert visible_files(volume) == {"a": b"3", "c": b"4"}
    assert not (volume / first).exists()


OBJECTS: dict[tuple[str, str], Files] = {
    ("Secret", "tls"): {"tls.crt": b"C", "tls.key": b"K"},
    ("ConfigMap", "ca"): {"ca.crt": b"A"},
}


@pytest.mark.parametrize(
    ("volume", "files"),
    [
        ({"configMap": {"name": "ca"}}, {"ca.crt": b"A"}),
        ({"secret": {"secretName": "tls"}}, {"tls.crt": b"C", "tls.key": b"K"}),
        (
            {
                "projected": {
                    "sources": [
                        {
                            "secret": {
                                "name": "tls",
                                "items": [{"key": "tls.crt", "path": "secrets/tls/tls.crt"}],
                            }
                        },
                        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "maps/ca.crt"}]}},
                    ]
                }
            },
            {"secrets/tls/tls.crt": b"C", "maps/ca.crt": b"A"},
        ),
        ({"emptyDir": {}}, None),
    ],
)
def test_files_of_volume(volume: dict[str, Any], files: Files | None) -> None:
    assert volume_files(volume, lambda kind, name: OBJECTS.get((kind, name))) == files


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "missing"}, 'secret "missing" not found'),
        (
            {"name": "tls", "items": [{"key": "ca.crt", "path": "x"}]},
            'secret "tls" references non-existent secret key: ca.crt',
        ),
    ],
)
def test_missing_object_is_reported_as_by_kubelet(source: dict[str, Any], message: str) -> None:
    with pytest.raises(NotMountable, match=message):
        volume_files({"projected": {"sources": [{"secret": source}]}}, lambda k, n: OBJECTS.get((k, n)))


def test_object_is_read_from_directory(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "tls.crt").write_bytes(b"C")
    assert read_object(tmp_path, "tls") == {"tls.crt": b"C"}
    assert read_object(tmp_path, "missing") is None
    assert read_object(None, "tls") is None
