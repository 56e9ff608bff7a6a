# SPDX-License-Identifier: Apache-2.0
"""Volumes with the kubelet's layout: symlinks through ``..data``, which is replaced atomically."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""Content by relative path."""


class NotMountable(Exception):
    """A volume refers to an object or key that does not exist; the text is the kubelet's."""


def write_volume(directory: Path, files: Mapping[str, bytes]) -> bool:
    """Replace the files of a volume atomically.

    Args:
        directory: Where the volume is mounted; created when missing.
        files: Its files; nothing is written when it has exactly these.

    Returns:
        Whether anything changed.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _read_volume(directory) == dict(files):
        return False
    new = Path(tempfile.mkdtemp(prefix="..", dir=directory))
    for path, content in files.items():
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        (new / path).write_bytes(content)
        (new / path).chmod(0o400)
    old = directory / "..data"
    previous = old.resolve() if old.is_symlink() else None
    _replace_link(directory / "..data", new.name)
    names = {path.split("/")[0] for path in files}
    for name in names:
        _replace_link(directory / name, f"..data/{name}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in names:
            entry.unlink()
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)
    return True


def _read_volume(directory: Path) -> Files | None:
    data = directory / "..data"
    if not data.is_symlink():
        return None
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def _replace_link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = link.with_name(f"{link.name}_tmp")
    fresh.symlink_to(target)
    fresh.replace(link)


def volume_files(volume: Mapping[str, Any], read: Callable[[str, str], Files | None]) -> Files | None:
    """Return the files of a pod's volume.

    Args:
        volume: One entry of the pod's ``volumes``.
        read: Returns the data of a ``Secret`` or ``ConfigMap`` by kind and name; ``None`` when there is none.

    Returns:
        The files; ``None`` for kinds of volumes that start empty.

    Raises:
        NotMountable: An object or a key is missing.
    """
    if "configMap" in volume:
        return _items("ConfigMap", volume["configMap"]["name"], volume["configMap"], read)
    if "secret" in volume:
        return _items("Secret", volume["secret"]["secretName"], volume["secret"], read)
    if "projected" not in volume:
        return None
    files: Files = {}
    for source in volume["projected"]["sources"]:
        for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
            if field in source:
                files |= _items(kind, source[field]["name"], source[field], read)
    return files


def _items(
    kind: str, name: str, source: Mapping[str, Any], read: Callable[[str, str], Files | None]
) -> Files:
    data = read(kind, name)
    if data is None:
        raise NotMountable(f'{kind.lower()} "{name}" not found')
    chosen = source.get("items") or [{"key": key, "path": key} for key in data]
    missing = [item["key"] for item in chosen if item["key"] not in data]
    if missing:
        raise NotMountable(
            f'{kind.lower()} "{name}" references non-existent {kind.lower()} key: {missing[0]}'
        )
    return {item["path"]: data[item["key"]] for item in chosen}


def read_object(directory: Path | None, name: str) -> Files | None:
    """Read a Secret or ConfigMap from a directory: one directory per object, one file per key."""
    folder = directory / name if directory else None
    if folder is None or not folder.is_dir():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
