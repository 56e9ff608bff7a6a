# SPDX-License-Identifier: Apache-2.0
"""Reads a configuration, whichever of the three kinds of file it stands in.

A ``MailProxy`` manifest (YAML or JSON), the configuration that the operator
rendered (JSON), or an ``nginx.conf``: the content tells which.  Certificates and
other files are not opened here; ``check_files`` looks whether they could be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from mailproxy_config.decode import plain_text
from mailproxy_config.secret_refs import Mounts
from mailproxy_config.yaml_reader import documents

from .compile import compile_proxy, with_hostname
from .dump import FORMAT, config_hash
from .errors import ConfigError, Problem, Problems
from .manifest import API_VERSION, KIND, MailProxyManifest, parse_manifest
from .manifest_places import ManifestPlaces
from .model import ProxyConfig, ServerConfig
from .rendered import parse_json, parse_rendered

_NGINX_BEGINS: Final = re.compile(r"\s*(#[^\n]*\n\s*)*[a-z_][a-z0-9_]*(\s+[^:\s]|\s*[;{])")
_JSON_BEGINS: Final = re.compile(r'\s*\{\s*"')
_NUMBERED: Final = re.compile(r"servers\[([0-9]{1,4})\]")
_MOUNTS: Final = Mounts()
NOT_REGULAR: Final = "is not a regular file"
"""How the reason begins that ``check_files`` gives for a pipe or a device."""


class Kind(StrEnum):
    """What kind of file a configuration was read from."""

    MANIFEST = "manifest"
    RENDERED = "rendered"
    NGINX = "nginx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and where it comes from.

    Attributes:
        config: What to run.
        generation: Of the resource it was made of; 0 where there is none.
        hash: ``config_hash`` before the host name was filled in, so that all pods agree on it.
        notices: What is accepted but worth telling.
        kind: The kind of file.
        located: Gives a problem of a server of ``config`` its file and line, where it has one.
    """

    config: ProxyConfig
    generation: int
    hash: str
    notices: tuple[Problem, ...]
    kind: Kind
    located: Callable[[Problem], Problem] = field(default=lambda problem: problem, compare=False)


def load(text: bytes, *, source: str = "", mounts: Mounts = _MOUNTS, hostname: str = "") -> Loaded:
    """Read a configuration.

    Args:
        text: The content of the file.
        source: The file's path; problems name it, and an ``nginx.conf`` includes relative to it.
        mounts: Where Secrets and ConfigMaps are found as files.
        hostname: The machine's name, for servers without a ``server_name``.

    Raises:
        ConfigError: With everything that is wrong with it.  Its ``partial`` is what a manifest or an
            ``nginx.conf`` says in spite of that.
    """
    words = _decoded(text, source)
    if words.lstrip().startswith("{") and f'"{FORMAT}"' in words:
        config, generation = parse_rendered(parse_json(words, source))
        return Loaded(
            config=with_hostname(config, hostname),
            generation=generation,
            hash=config_hash(config),
            notices=(),
            kind=Kind.RENDERED,
            located=_by_name(config),
        )
    if _NGINX_BEGINS.match(words):
        # Not at the top: the proxy in a pod never needs crossplane.
        from mailproxy_config.nginx.convert import read_nginx  # noqa: PLC0415

        return _loaded(lambda: read_nginx(words, source=source), mounts, hostname, Kind.NGINX)

    def read() -> tuple[MailProxyManifest, ManifestPlaces]:
        try:
            manifest = manifest_of(words, source=source)
        except ConfigError as error:
            places = ManifestPlaces(error.partial) if error.partial is not None else None
            raise ConfigError(error.problems, partial=places and (error.partial, places)) from None
        return manifest, ManifestPlaces(manifest)

    return _loaded(read, mounts, hostname, Kind.MANIFEST)


def manifest_of(text: str, *, source: str = "") -> MailProxyManifest:
    """Read the one ``MailProxy`` of a YAML or JSON text; other documents are named in the notices.

    Raises:
        ConfigError: There is none, there are several, or it is not in order.
    """
    found, others = [], []
    for document in _documents(text, source):
        if isinstance(document, Mapping) and document.get("kind") == KIND:
            found.append(document)
        else:
            others.append(document)
    if len(found) > 1:
        raise ConfigError([Problem(source, f"has {len(found)} resources of kind {KIND}; one is wanted")])
    if not found and len(others) == 1 and isinstance(others[0], Mapping):
        return parse_manifest(others[0])
    if not found:
        wanted = f"a {KIND} manifest ({API_VERSION}), a rendered configuration, or an nginx.conf"
        raise ConfigError([Problem(source, f"is neither {wanted.replace(', or', ', nor')}")])
    manifest = parse_manifest(found[0])
    ignored = [Problem(source, f"ignored: {_described(other)}") for other in others]
    return replace(manifest, notices=(*manifest.notices, *ignored))


def check_files(config: ProxyConfig, kind: Kind | None = None) -> tuple[Problem, ...]:
    """Tell which of the files that a configuration refers to cannot be read.

    Args:
        config: The configuration.
        kind: The kind of file it comes from: it makes a difference to who can mend it.

    TLS files of a server that uses no TLS do not matter, since nobody opens them,
    nor do those for clients' certificates where nobody asks for any.
    """
    problems = Problems()
    for index, server in enumerate(config.servers):
        for name, path in _files(server):
            reason = _unreadable(path)
            if reason:
                hint = _mount_hint(path, name, kind)
                problems.add(f"servers[{index}].{name}", f"{path}: {reason}{hint}")
    return tuple(dict.fromkeys(problems))


def _by_name(config: ProxyConfig) -> Callable[[Problem], Problem]:
    """Servers of a rendered configuration by the names that they have in the manifest."""

    def located(problem: Problem) -> Problem:
        found = _NUMBERED.match(problem.path)
        if found is None or int(found[1]) >= len(config.servers):
            return problem
        name = config.servers[int(found[1])].name
        return Problem(f"servers[{name}]{problem.path[found.end() :]}", problem.reason)

    return located


def is_mounted(problem: Problem) -> bool:
    """Whether what ``check_files`` found is about a Secret or a ConfigMap, which only a pod has as files."""
    return f"{_MOUNTS.root}/" in problem.reason.partition(": ")[0]


class _Places(Protocol):
    """Where a configuration says what."""

    def located(self, problem: Problem) -> Problem:
        """A problem of ``servers[NAME].directive`` at its place in the file."""
        ...

    def completed(self, config: ProxyConfig) -> ProxyConfig:
        """The configuration with what the file says and a manifest has no room for."""
        ...


def _loaded(
    read: Callable[[], tuple[MailProxyManifest, _Places]], mounts: Mounts, hostname: str, kind: Kind
) -> Loaded:
    """What ``read`` gives, compiled; where it fails, what it could read is compiled for the error."""

    def compiled(manifest: MailProxyManifest, places: _Places, *, is_partial: bool) -> Loaded:
        config = places.completed(compile_proxy(manifest, mounts=mounts, is_partial=is_partial))
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


def _mount_hint(path: str, directive: str, kind: Kind | None) -> str:
    """What to do about a file that comes from a Secret or a ConfigMap."""
    root, _, rest = path.partition(f"{_MOUNTS.root}/")
    parts = rest.split("/")
    if root or len(parts) != 3 or kind is None:
        return ""
    what = f"{'Secret' if parts[0] == 'secrets' else 'ConfigMap'} {parts[1]}"
    if kind is Kind.RENDERED:
        return f"; does the {what} have the key {parts[2]}?"
    written = {
        "auth_http_header": "value",
        "ssl_certificate": "certificateFile and keyFile",
        "ssl_certificate_key": "certificateFile and keyFile",
    }.get(directive, "file")
    return (
        f"; the {what} is a file in a pod only: elsewhere write {written} instead, "
        "or use mailproxy-operator local --secrets DIR"
    )


def _documents(text: str, source: str) -> list[Any]:
    """The documents of a text; JSON may be indented with tabs, which YAML forbids."""
    if _JSON_BEGINS.match(text):
        return [parse_json(text, source)]
    return documents(text, source=source)


def _decoded(data: bytes, source: str) -> str:
    words = plain_text(data, source)
    if not words.strip():
        raise ConfigError([Problem(source, "is empty")])
    return words


def _described(document: object) -> str:
    """An ignored document in a few words."""
    if not isinstance(document, Mapping):
        return "a document that is no object"
    metadata = document.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    return f"{str(document.get('kind', 'a document without a kind'))[:64]} {str(name)[:64]}".rstrip()


def _files(server: ServerConfig) -> Iterator[tuple[str, str]]:
    """Every file that a server reads, with the directive that names it."""
    for header in server.auth_http_header:
        if header.value_file is not None:
            yield "auth_http_header", header.value_file
    yield from server.tls_files


def _unreadable(path: str) -> str:
    """Why a file cannot be read; empty if it can."""
    if not os.path.exists(path):
        return "there is no such file"
    if os.path.isdir(path):
        return "is a directory"
    if not os.path.isfile(path):
        return f"{NOT_REGULAR}: reading it may never end"
    return "" if os.access(path, os.R_OK) else "cannot be read: permission denied"
