# SPDX-License-Identifier: Apache-2.0
"""Notices about an ``nginx.conf`` that is valid, but depends on what only nginx or its machine has.

The proxy does not run ``http {}``, so an authentication service in it is missing.  In a pod
``127.0.0.1`` is the pod itself, files of the machine do not exist, and a secret does not
belong in a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from mailproxy_config import addresses
from mailproxy_config.addresses import parse_auth_http, parse_host_port
from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.nginx.syntax import ConfigFiles, Statement

_LOOPBACK: Final = re.compile(r"localhost\.?|127(\.[0-9]+){3}|\[::1\]|\[::ffff:127\.[0-9.]+\]", re.IGNORECASE)
_WILDCARDS: Final = frozenset({"*", "0.0.0.0", "[::]"})  # noqa: S104 -- compared, never bound
_LISTEN: Final = re.compile(r"(?P<host>\[[^]]*\]|[^:]*?):?(?P<port>[0-9]{1,5})")
_DEFAULT_PORT: Final = 80


@dataclass(slots=True)
class HttpServer:
    """A ``server {}`` of ``http {}``: its addresses and ports, socket paths, and names."""

    location: str
    listen: list[tuple[str, int]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def serves(self, url: str) -> bool:
        """Whether requests to the URL of an ``auth_http`` reach this server."""
        try:
            service = addresses.parse_auth_http(url)
        except ValueError:
            return False
        if service.unix_path is not None:
            return service.unix_path in self.paths
        host = service.host.lower()
        return any(
            port == service.port and self._is_reached(host, listener) for listener, port in self.listen
        )

    def _is_reached(self, host: str, listener: str) -> bool:
        if listener in _WILDCARDS:
            return is_loopback(host) or host in self.names
        return host == listener or (is_loopback(host) and is_loopback(listener))


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or ``localhost``."""
    return _LOOPBACK.fullmatch(host) is not None


def read_http_servers(blocks: Sequence[Statement], base: str, main: str) -> list[HttpServer]:
    """Read the servers of ``http {}`` blocks with their includes; errors in them are ignored.

    Args:
        blocks: The ``http`` statements.
        base: The directory of the main file.
        main: Its absolute path.
    """
    files = ConfigFiles(base, Problems(), main)
    found: list[HttpServer] = []
    with suppress(ConfigError):
        for server in _inner(files, blocks, "server"):
            found.append(_read(server, _inner(files, [server], "listen", "server_name")))  # noqa: PERF401
    return found


def _inner(files: ConfigFiles, blocks: Iterable[Statement], *names: str) -> Iterator[Statement]:
    for block in blocks:
        yield from (each for each in files.with_includes(block.block or ()) if each.name in names)


def _read(server: Statement, directives: Iterable[Statement]) -> HttpServer:
    found = HttpServer(server.location)
    for each in directives:
        if each.name == "server_name":
            found.names.update(name.lower() for name in each.arguments)
        elif each.arguments:
            _listen(each.arguments[0], found)
    if not found.listen and not found.paths:
        found.listen.append(("*", _DEFAULT_PORT))
    return found


def _listen(text: str, server: HttpServer) -> None:
    if text[:5].lower() == "unix:":
        server.paths.add(text[5:])
        return
    parts = _LISTEN.fullmatch(text) if not text.startswith("[") or not text.endswith("]") else None
    if parts is None or ("." in text and ":" not in text):
        server.listen.append((text.lower(), _DEFAULT_PORT))
    else:
        server.listen.append((parts["host"].lower() or "*", int(parts["port"])))


_FILE_FIELDS: Final = (
    *("sslClientCertificate", "sslTrustedCertificate", "sslCrl", "sslDhparam", "sslPasswordFile"),
    "sslSessionTicketKey",
)

_POD: Final = "is the pod itself on Kubernetes"


def pod_notes(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Notices about values of a converted spec that do not work in a pod; they contain no secret."""
    levels = [("spec.mail", spec.get("mail", {}))]
    levels += [(f"spec.servers[{index}]", server) for index, server in enumerate(spec.get("servers", ()))]
    for path, level in levels:
        yield from _service_notices(path, level)
        yield from _file_notices(path, level)
        yield from _listener_notices(path, level)
        yield from _address_notices(path, level)


def _service_notices(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    url = level.get("authHttp")
    if url is not None:
        try:
            service = parse_auth_http(url)
        except ValueError:
            return  # reported elsewhere
        if service.unix_path is not None:
            reason = f"the socket {service.unix_path} is not in the pod; name a Service, such as"
            yield Problem(f"{path}.authHttp", f"{reason} http://auth.mail.svc:9000{service.uri[:64]}")
        elif is_loopback(service.host):
            reason = f"{service.host} {_POD}; name a Service, such as"
            yield Problem(
                f"{path}.authHttp", f"{reason} http://auth.mail.svc:{service.port}{service.uri[:64]}"
            )
    for index, header in enumerate(level.get("authHttpHeader", ())):
        name = header["name"][:64]
        reason = (
            f"the value of {name} is in plain text in the manifest; if it is a secret, use a Secret: "
            f"{{name: {name}, valueFrom: {{secretKeyRef: {{name: SECRET, key: KEY}}}}}}"
        )
        yield Problem(f"{path}.authHttpHeader[{index}]", reason)


def _file_notices(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for index, pair in enumerate(level.get("sslCertificate", ())):
        if "certificateFile" in pair:
            reason = (
                f"{pair['certificateFile']} and {pair['keyFile']} are not in the pod; put them into a Secret "
                "of type kubernetes.io/tls and write {secretName: NAME}"
            )
            yield Problem(f"{path}.sslCertificate[{index}]", reason)
    for name in _FILE_FIELDS:
        written = level.get(name, ())
        for value in written if isinstance(written, list) else [written]:
            if value and "file" in value:
                reason = (
                    f"{value['file']} is not in the pod; put it into a Secret and write "
                    "{secretKeyRef: {name: NAME, key: KEY}}"
                )
                yield Problem(f"{path}.{name}", reason)


def _listener_notices(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for index, listener in enumerate(level.get("listen", ())):
        address = listener.get("address", "*")
        if address.startswith("unix:"):
            yield Problem(f"{path}.listen[{index}]", f"{address} can be reached only inside the pod")
        elif is_loopback(address):
            reason = f"{address} {_POD} and cannot be reached from outside; remove the address"
            yield Problem(f"{path}.listen[{index}]", reason)
        elif address not in _WILDCARDS:
            yield Problem(f"{path}.listen[{index}]", f"a pod does not have {address}; remove the address")


def _address_notices(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for server in level.get("resolver", {}).get("addresses", ()):
        if _is_local(server):
            yield Problem(f"{path}.resolver", f"{server} {_POD}; write {{mode: System}} for its name servers")
    for peer in level.get("setRealIpFrom", ()):
        if peer == "unix:" or is_loopback(peer) or peer.startswith(("127.", "::1")):
            reason = f"{peer} {_POD}; name the addresses of your load balancers or nodes"
            yield Problem(f"{path}.setRealIpFrom", reason)


def _is_local(server: str) -> bool:
    try:
        return is_loopback(parse_host_port(server).host)
    except ValueError:
        return False
