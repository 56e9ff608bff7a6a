# SPDX-License-Identifier: Apache-2.0
"""Volumes of pods, with the kubelet's way to update them: a renamed symbolic link."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from support.kube_api import Api, Object

DATA: Final = "..data"
_DEFAULT_MODE: Final = 0o644


class NotThereError(Exception):
    """An object that a pod refers to does not exist."""


class Sources:
    """Reads what a pod refers to."""

    def __init__(self, api: Api, pod: Object) -> None:
        self._api = api
        self._pod = pod
        self._namespace = pod["metadata"]["namespace"]
        self._tokens: dict[str, bytes] = {}
        self.address = ""

    def data(self, kind: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """Return the data of a ConfigMap or Secret.

        Raises:
            NotThereError: It does not exist, and is not optional.
        """
        found = self._api.find(kind, self._namespace, name)
        if found is None:
            if optional:
                return {}
            raise NotThereError(f"{kind.lower()} {name!r} not found")
        encoded = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
        values = found.get("data") or {}
        if kind == "Secret":
            return {key: base64.b64decode(value) for key, value in values.items()}
        return {**encoded, **{key: value.encode() for key, value in values.items()}}

    def field(self, path: str) -> str:
        """Return a field of the pod, as the downward API names it."""
        metadata = self._pod["metadata"]
        known: dict[str, Any] = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "spec.nodeName": self._pod["spec"]["nodeName"],
            "status.podIP": self.address,
        }
        if path in known:
            return str(known[path])
        group, _, key = path.partition("[")
        return str((metadata.get(group.removeprefix("metadata.")) or {}).get(key.strip("'\"]"), ""))

    def token(self, audience: str) -> bytes:
        """Return a token of the pod's service account, bound to the pod."""
        if audience not in self._tokens:
            metadata, account = self._pod["metadata"], self._pod["spec"]["serviceAccountName"]
            bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
            spec: Object = {"boundObjectRef": bound, "expirationSeconds": 7200}
            if audience:
                spec["audiences"] = [audience]
            path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
            asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            self._tokens[audience] = self._api.post(path, asked).checked_body["status"]["token"].encode()
        return self._tokens[audience]


def _selected(
    source: Mapping[str, Any], data: Mapping[str, bytes], mode: int
) -> dict[str, tuple[bytes, int]]:
    """Return the files of a ConfigMap or Secret source: all keys, or those of ``items``."""
    items = source.get("items")
    if items is None:
        return {key: (value, mode) for key, value in data.items()}
    missing = [one["key"] for one in items if one["key"] not in data]
    if missing and not source.get("optional"):
        raise NotThereError(f"references non-existent key {missing[0]!r}")
    return {one["path"]: (data[one["key"]], one.get("mode", mode)) for one in items if one["key"] in data}


def files_of(volume: Object, sources: Sources) -> dict[str, tuple[bytes, int]] | None:
    """Return content and mode of each file of a volume; ``None`` if the volume is an empty directory."""
    if "configMap" in volume:
        return _of_source({"configMap": volume["configMap"]}, sources, _mode(volume["configMap"]))
    if "secret" in volume:
        source = {**volume["secret"], "name": volume["secret"]["secretName"]}
        return _of_source({"secret": source}, sources, _mode(volume["secret"]))
    if "downwardAPI" in volume:
        return _of_source({"downwardAPI": volume["downwardAPI"]}, sources, _mode(volume["downwardAPI"]))
    if "projected" in volume:
        mode = _mode(volume["projected"])
        found: dict[str, tuple[bytes, int]] = {}
        for source in volume["projected"]["sources"]:
            found.update(_of_source(source, sources, mode))
        return found
    if "emptyDir" in volume:
        return None
    raise NotThereError(f"this node has no volumes of the kind of {volume['name']!r}")


def _mode(source: Mapping[str, Any]) -> int:
    return int(source.get("defaultMode", _DEFAULT_MODE))


def _of_source(source: Mapping[str, Any], sources: Sources, mode: int) -> dict[str, tuple[bytes, int]]:
    [(kind, body)] = source.items()
    if kind in {"configMap", "secret"}:
        name = "ConfigMap" if kind == "configMap" else "Secret"
        data = sources.data(name, body["name"], optional=bool(body.get("optional")))
        return _selected(body, data, mode)
    if kind == "downwardAPI":
        return {
            one["path"]: (sources.field(one["fieldRef"]["fieldPath"]).encode(), mode) for one in body["items"]
        }
    if kind == "serviceAccountToken":
        return {body["path"]: (sources.token(body.get("audience", "")), mode)}
    raise NotThereError(f"this node has no projected volumes of kind {kind}")


class Volume:
    """The directory of one volume.

    Attributes:
        path: The directory to mount.
    """

    def __init__(self, definition: Object, path: Path, group: int | None) -> None:
        self.path = path
        self._definition = definition
        self._group = group
        self._current: dict[str, tuple[bytes, int]] | None = None
        path.mkdir(parents=True)
        path.chmod(0o777 if "emptyDir" in definition else 0o755)

    def update(self, sources: Sources) -> None:
        """Write the files, if they have changed."""
        files = files_of(self._definition, sources)
        if files is None or files == self._current:
            return
        fresh = self.path / f"..{time.time_ns()}"
        for name, (content, mode) in files.items():
            self._write(fresh / name, content, mode)
        fresh.mkdir(exist_ok=True)
        old = os.readlink(self.path / DATA) if (self.path / DATA).is_symlink() else ""
        temporary = self.path / f"{DATA}_tmp"
        temporary.symlink_to(fresh.name)
        temporary.rename(self.path / DATA)
        self._link_names(files)
        if old:
            shutil.rmtree(self.path / old)
        self._current = files

    def _write(self, path: Path, content: bytes, mode: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if self._group is not None:
            os.chown(path, -1, self._group)
            mode |= 0o440
        path.chmod(mode)

    def _link_names(self, files: Mapping[str, Any]) -> None:
        wanted = {name.partition("/")[0] for name in files}
        for name in wanted:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"{DATA}/{name}")
        for found in self.path.iterdir():
            if found.is_symlink() and found.name not in {*wanted, DATA}:
                found.unlink()
