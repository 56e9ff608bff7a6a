# SPDX-License-Identifier: Apache-2.0
"""Directive values that refer to files: certificates, keys, and what else TLS needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.model import SessionCache
from mailproxy_config.schema import ListOf, Record, Rule, Text
from mailproxy_config.secret_refs import CertificateRef, FileRef, KeyRef, ReferenceKind
from mailproxy_config.value_types import ErrorPath, Raw, ValueType, read_items

_NAME: Final = Text(
    longest=253,
    shortest=1,
    pattern="^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
    hint="the name of an object: lower-case letters, digits, hyphens and dots",
)
_KEY: Final = Text(
    longest=253,
    shortest=1,
    pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
    hint="a key: letters, digits, hyphens, underscores and dots, not beginning with two dots",
)
_PATH: Final = Text(longest=1024, pattern="^/", hint="an absolute path")
KEY_REF: Final = Record(
    fields={"name": _NAME, "key": _KEY},
    required=("name", "key"),
    descriptions={
        "name": "The name of the Secret or ConfigMap, in the namespace of the resource.",
        "key": "The key in its data.",
    },
)
"""One key of a Secret or a ConfigMap."""


def key_ref(kind: ReferenceKind, value: Mapping[str, str]) -> KeyRef:
    """The reference that a ``KEY_REF`` stands for."""
    return KeyRef(kind, value["name"], value["key"])


def key_ref_written(ref: KeyRef) -> Raw:
    """The field of a manifest that stands for a reference."""
    field = "secretKeyRef" if ref.kind is ReferenceKind.SECRET else "configMapKeyRef"
    return {field: {"name": ref.name, "key": ref.key}}


# --- certificates and other files ----------------------------------------------


def _file(value: Mapping[str, Any], _: ErrorPath) -> FileRef:
    if "secretKeyRef" in value:
        return key_ref(ReferenceKind.SECRET, value["secretKeyRef"])
    if "configMapKeyRef" in value:
        return key_ref(ReferenceKind.CONFIG_MAP, value["configMapKeyRef"])
    return str(value["file"])


def _file_written(value: FileRef) -> Raw:
    return {"file": value} if isinstance(value, str) else key_ref_written(value)


_SOURCES: Final = ("secretKeyRef", "configMapKeyRef", "file")
FILE_SHAPE: Final = Record(
    example="{file: /PATH} or {secretKeyRef: {name: NAME, key: KEY}}",
    fields={"secretKeyRef": KEY_REF, "configMapKeyRef": KEY_REF, "file": _PATH},
    descriptions={
        "secretKeyRef": "A key of a Secret; the operator mounts it and never reads it.",
        "configMapKeyRef": "A key of a ConfigMap.",
        "file": "The path of a file; without a cluster, or in a volume of pod.extraVolumes.",
    },
    rules=(
        Rule(
            expression=(
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.file)].filter(x, x).size() == 1"
            ),
            message="exactly one of secretKeyRef, configMapKeyRef and file must be set",
            holds=lambda value: sum(source in value for source in _SOURCES) == 1,
        ),
    ),
)
_FILE_SYNTAX: Final = "{secretKeyRef: {name, key}}, {configMapKeyRef: {name, key}} or {file}"
FILE: Final = ValueType(
    syntax=_FILE_SYNTAX,
    shape=FILE_SHAPE,
    read=_file,
    write=_file_written,
    nginx=lambda words: {"file": words[0]},
)
FILES: Final = ValueType(
    syntax="list of " + _FILE_SYNTAX,
    shape=ListOf(items=FILE_SHAPE, most=8),
    read=lambda value, place: read_items(value, place, _file),
    write=lambda value: list(map(_file_written, value)),
    nginx=lambda words: [{"file": words[0]}],
    appends=True,
)


def _certificate(value: Mapping[str, str], _: ErrorPath) -> CertificateRef:
    if "secretName" in value:
        secret = ReferenceKind.SECRET, value["secretName"]
        return CertificateRef(KeyRef(*secret, "tls.crt"), KeyRef(*secret, "tls.key"))
    return CertificateRef(value["certificateFile"], value["keyFile"])


def _certificate_written(value: CertificateRef) -> Raw:
    if isinstance(value.certificate, KeyRef):
        return {"secretName": value.certificate.name}
    return {"certificateFile": value.certificate, "keyFile": value.key}


def _certificate_is_whole(value: Mapping[str, Any]) -> bool:
    if "secretName" in value:
        return "certificateFile" not in value and "keyFile" not in value
    return "certificateFile" in value and "keyFile" in value


CERTIFICATES: Final = ValueType(
    syntax="list of {secretName} or {certificateFile, keyFile}",
    shape=ListOf(
        most=8,
        items=Record(
            example="{secretName: NAME} or {certificateFile: /PATH, keyFile: /PATH}",
            fields={"secretName": _NAME, "certificateFile": _PATH, "keyFile": _PATH},
            rules=(
                Rule(
                    expression=(
                        "has(self.secretName) ? !has(self.certificateFile) && !has(self.keyFile)"
                        " : has(self.certificateFile) && has(self.keyFile)"
                    ),
                    message="set either secretName, or certificateFile together with keyFile",
                    holds=_certificate_is_whole,
                ),
            ),
            descriptions={
                "secretName": "A Secret of type kubernetes.io/tls in the same namespace.",
                "certificateFile": "Path of a PEM file, the server's certificate first.",
                "keyFile": "Path of the PEM file with its private key.",
            },
        ),
    ),
    read=lambda value, place: read_items(value, place, _certificate),
    write=lambda value: list(map(_certificate_written, value)),
    nginx=lambda words: [{"certificateFile": words[0]}],
    appends=True,
)


# --- sslSessionCache, sslConfCommand -------------------------------------------

_DEFAULT_BUILTIN: Final = 20480
_SMALLEST_SHARED: Final = 32 * 1024


def _session_cache(value: Sequence[str], _: ErrorPath) -> SessionCache:
    parts = {item.partition(":")[0]: item.partition(":")[2] for item in value}
    if len(parts) < len(value) or (len(value) > 1 and {"Disabled", "None"} & parts.keys()):
        raise ValueError("takes Disabled, None, or one builtin and one shared cache at most")
    name, _colon, size = parts.get("shared", "").partition(":")
    shared_size = units.size(size) if size else None
    if shared_size is not None and shared_size < _SMALLEST_SHARED:
        raise ValueError(f"session cache {name!r} is too small: at least 32k")
    builtin = int(parts["builtin"] or _DEFAULT_BUILTIN) if "builtin" in parts else None
    return SessionCache(
        off="Disabled" in parts, builtin=builtin, shared_name=name or None, shared_size=shared_size
    )


def _session_cache_written(value: SessionCache) -> Raw:
    if value.off:
        return ["Disabled"]
    builtin = [] if value.builtin is None else [f"builtin:{value.builtin}"]
    size = value.shared_size
    shared = [] if size is None else [f"shared:{value.shared_name}:{units.printed_size(size)}"]
    return builtin + shared or ["None"]


SESSION_CACHE: Final = ValueType(
    syntax="list of Disabled, None, builtin[:N], shared:NAME:SIZE",
    shape=ListOf(
        most=2,
        fewest=1,
        items=Text(
            longest=64,
            pattern="^(Disabled|None|builtin(:[0-9]{1,9})?|shared:[^:]+:[0-9]+[kKmM]?)$",
            hint="Disabled, None, builtin[:N] or shared:NAME:SIZE",
        ),
    ),
    read=_session_cache,
    write=_session_cache_written,
    nginx=lambda words: [{"off": "Disabled", "none": "None"}.get(word, word) for word in words],
    arity=(1, 2),
)

CONF_COMMANDS: Final = ValueType(
    syntax="list of {name, value}",
    shape=ListOf(
        most=32,
        items=Record(
            fields={"name": Text(longest=128, shortest=1), "value": Text(longest=1024)},
            required=("name", "value"),
            descriptions={"name": "The command, such as Options.", "value": "Its value."},
        ),
    ),
    read=lambda value, _: tuple((item["name"], item["value"]) for item in value),
    write=lambda value: [{"name": name, "value": text} for name, text in value],
    nginx=lambda words: [{"name": words[0], "value": words[1]}],
    arity=(2, 2),
    appends=True,
)
