# SPDX-License-Identifier: Apache-2.0
"""Loads a configuration file of any of the three kinds.

A ``MailProxy`` manifest (YAML or JSON), a configuration rendered by the operator (JSON),
or an ``nginx.conf``: the kind is recognised from the content.  Certificates and other
files are not opened; ``check_files`` checks whether they can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from mailproxy_config.compile import compile_proxy, with_hostname
from mailproxy_config.decode import decode_text, parse_json
from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.manifest import API_VERSION, KIND, MailProxyManifest, ManifestSourceMap, parse_manifest
from mailproxy_config.manifest_yaml import load_documents
from mailproxy_config.model import ProxyConfig
from mailproxy_config.rendered import FORMAT, config_hash, parse_rendered
from mailproxy_config.secret_refs import Mounts

_NGINX_BEGINS: Final = re.compile(r"\s*(#[^\n]*\n\s*)*[a-z_][a-z0-9_]*(\s+[^:\s]|\s*[;{])")
_JSON_BEGINS: Final = re.compile(r'\s*\{\s*"')
_NUMBERED: Final = re.compile(r"servers\[([0-9]{1,4})\]")
_MOUNTS: Final = Mounts()
NOT_REGULAR: Final = "is not a regular file"
"""Start of the reason that ``check_files`` reports for a pipe or device."""


class FileKind(StrEnum):
    """The kind of a configuration file."""

    MANIFEST = "manifest"
    RENDERED = "rendered"
    NGINX = "nginx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded configuration.

    Attributes:
        config: The compiled configuration.
        generation: Generation of the resource; 0 if there is none.
        hash: ``config_hash`` before the host name was set, so that it is the same for all pods.
        notices: Values that are accepted but probably not intended.
        kind: The kind of file.
        located: Maps a problem of a server in ``config`` to its file and line, or field.
    """

    config: ProxyConfig
    generation: int
    hash: str
    notices: tuple[Problem, ...]
    kind: FileKind
    located: Callable[[Problem], Problem] = field(default=lambda problem: problem, compare=False)


def load(text: bytes, *, source: str = "", mounts: Mounts = _MOUNTS, hostname: str = "") -> Loaded:
    """Load a configuration.

    Args:
        text: The content of the file.
        source: The path of the file, for errors and for the includes of an ``nginx.conf``.
        mounts: Where Secrets and ConfigMaps are mounted as files.
        hostname: The host name, for servers without a ``server_name``.

    Raises:
        ConfigError: With all errors.  ``partial`` is what could be loaded of a manifest or an
            ``nginx.conf``.
    """
    words = decode_text(text, source)
    if not words.strip():
        raise ConfigError([Problem(source, "is empty")])
    if words.lstrip().startswith("{") and f'"{FORMAT}"' in words:
        config, generation = parse_rendered(parse_json(words, source))
        return Loaded(
            config=with_hostname(config, hostname),
            generation=generation,
            hash=config_hash(config),
            notices=(),
            kind=FileKind.RENDERED,
            located=_by_name(config),
        )
    if _NGINX_BEGINS.match(words):
        # Imported here, because a proxy in a pod does not need crossplane.
        from mailproxy_config.nginx.convert import read_nginx  # noqa: PLC0415

        return _compile_loaded(lambda: read_nginx(words, source=source), mounts, hostname, FileKind.NGINX)

    def read() -> tuple[MailProxyManifest, ManifestSourceMap]:
        try:
            manifest = parse_manifest_text(words, source=source)
        except ConfigError as error:
            places = ManifestSourceMap(error.partial) if error.partial is not None else None
            raise ConfigError(error.problems, partial=places and (error.partial, places)) from None
        return manifest, ManifestSourceMap(manifest)

    return _compile_loaded(read, mounts, hostname, FileKind.MANIFEST)


def parse_manifest_text(text: str, *, source: str = "") -> MailProxyManifest:
    """Parse the one ``MailProxy`` of a YAML or JSON text; other documents are ignored with a notice.

    Raises:
        ConfigError: There is none, more than one, or it is invalid.
    """
    found, others = [], []
    for document in _documents(text, source):
        if isinstance(document, Mapping) and document.get("kind") == KIND:
            found.append(document)
        else:
            others.append(document)
    if len(found) > 1:
        raise ConfigError(
            [Problem(source, f"has {len(found)} resources of kind {KIND}; exactly one is allowed")]
        )
    if not found and len(others) == 1 and isinstance(others[0], Mapping):
        return parse_manifest(others[0])
    if not found:
        wanted = f"a {KIND} manifest ({API_VERSION}), a rendered configuration, or an nginx.conf"
        raise ConfigError([Problem(source, f"is neither {wanted.replace(', or', ', nor')}")])
    manifest = parse_manifest(found[0])
    ignored = [Problem(source, f"ignored: {_described(other)}") for other in others]
    return replace(manifest, notices=(*manifest.notices, *ignored))


def check_files(config: ProxyConfig, kind: FileKind | None = None) -> tuple[Problem, ...]:
    """Report the referenced files that cannot be read.

    Args:
        config: The configuration.
        kind: The kind of its file; the hint depends on it.

    TLS files count only if the server uses TLS (with clients, or with upstreams), and files for
    client certificates only if ``ssl_verify_client`` is not disabled.
    """
    problems = Problems()
    for index, server in enumerate(config.servers):
        headers = [
            ("auth_http_header", each.value_file) for each in server.auth_http_header if each.value_file
        ]
        upstream_files = (
            pair
            for each in server.with_groups
            for pair in (*each.upstream_tls_files, *each.upstream_login_files)
        )
        tables = [("route", route.table) for route in server.route if route.table is not None]
        users = [] if server.used_user_file is None else [("auth_user_file", server.used_user_file)]
        for name, path in (*headers, *server.tls_files, *upstream_files, *tables, *users):
            reason = _unreadable(path)
            if reason:
                hint = _secret_hint(path, name, kind)
                problems.add(f"servers[{index}].{name}", f"{path}: {reason}{hint}")
    return tuple(dict.fromkeys(problems))


def _by_name(config: ProxyConfig) -> Callable[[Problem], Problem]:
    """Replace the index of a server in a rendered configuration by its name."""

    def located(problem: Problem) -> Problem:
        found = _NUMBERED.match(problem.path)
        if found is None or int(found[1]) >= len(config.servers):
            return problem
        name = config.servers[int(found[1])].name
        return Problem(f"servers[{name}]{problem.path[found.end() :]}", problem.reason)

    return located


def is_mounted(problem: Problem) -> bool:
    """Whether a problem of ``check_files`` is about a Secret or ConfigMap, which only pods have as files."""
    return f"{_MOUNTS.root}/" in problem.reason.partition(": ")[0]


class _SourceMap(Protocol):
    """Maps problems of a compiled configuration to its source."""

    def located(self, problem: Problem) -> Problem:
        """Map a problem of ``servers[NAME].directive`` to its place in the file."""
        ...

    def with_error_logs(self, config: ProxyConfig) -> ProxyConfig:
        """Add the logs of an ``nginx.conf``, which a manifest cannot contain."""
        ...


def _compile_loaded(
    read: Callable[[], tuple[MailProxyManifest, _SourceMap]], mounts: Mounts, hostname: str, kind: FileKind
) -> Loaded:
    """Compile the result of ``read``; if it raises, compile the partial result for the error."""

    def compiled(manifest: MailProxyManifest, places: _SourceMap, *, is_partial: bool) -> Loaded:
        config = places.with_error_logs(compile_proxy(manifest, mounts=mounts, is_partial=is_partial))
        return Loaded(
            config=with_hostname(config, hostname),
            generation=manifest.metadata.generation,
            hash="" if is_partial else config_hash(config),
            notices=manifest.notices,
            kind=kind,
            located=places.located,
        )

    try:
        manifest, places = read()
    except ConfigError as error:
        partial = error.partial and compiled(*error.partial, is_partial=True)
        raise ConfigError(error.problems, partial=partial) from None
    return compiled(manifest, places, is_partial=False)


def _secret_hint(path: str, directive: str, kind: FileKind | None) -> str:
    """How to provide a missing file of a Secret or ConfigMap."""
    root, _, rest = path.partition(f"{_MOUNTS.root}/")
    parts = rest.split("/")
    if root or len(parts) != 3 or kind is None:
        return ""
    what = f"{'Secret' if parts[0] == 'secrets' else 'ConfigMap'} {parts[1]}"
    if kind is FileKind.RENDERED:
        return f"; check that the {what} has the key {parts[2]}"
    written = {
        "auth_http_header": "value",
        "ssl_certificate": "certificateFile and keyFile",
        "ssl_certificate_key": "certificateFile and keyFile",
        "proxy_ssl_certificate": "certificateFile and keyFile",
        "proxy_ssl_certificate_key": "certificateFile and keyFile",
    }.get(directive, "file")
    return (
        f"; the {what} is mounted as a file only in a pod: elsewhere use {written}, "
        "or use mailproxy-operator local --secrets DIR"
    )


def _documents(text: str, source: str) -> list[Any]:
    """The documents of a text; JSON may be indented with tabs, YAML may not."""
    if _JSON_BEGINS.match(text):
        return [parse_json(text, source)]
    return load_documents(text, source=source)


def _described(document: object) -> str:
    """Kind and name of an ignored document."""
    if not isinstance(document, Mapping):
        return "a document that is no object"
    metadata = document.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    return f"{str(document.get('kind', 'a document without a kind'))[:64]} {str(name)[:64]}".rstrip()


def _unreadable(path: str) -> str:
    """Why a file cannot be read; empty if it can."""
    if not os.path.exists(path):
        return "there is no such file"
    if os.path.isdir(path):
        return "is a directory"
    if not os.path.isfile(path):
        return f"{NOT_REGULAR}: reading it may never end"
    return "" if os.access(path, os.R_OK) else "cannot be read: permission denied"
