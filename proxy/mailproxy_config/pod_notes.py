# SPDX-License-Identifier: Apache-2.0
"""What an ``nginx.conf`` says that means something else in a pod, for ``convert``.

The manifest is right, and runs on the machine of the ``nginx.conf``.  In a
pod ``127.0.0.1`` is the pod, files of the machine are not there, and a
manifest is no place for a secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mailproxy_config.nginx.http_block import is_loopback

from .addresses import auth_http, host_port
from .errors import Problem

_WILDCARDS: Final = frozenset({"*", "0.0.0.0", "[::]"})  # noqa: S104 -- what a pod can listen on
_FILES: Final = (
    *("sslClientCertificate", "sslTrustedCertificate", "sslCrl", "sslDhparam", "sslPasswordFile"),
    "sslSessionTicketKey",
)
_POD: Final = "is the pod itself on Kubernetes"


def pod_notes(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Notes about a spec that was made of an ``nginx.conf``, each at its field; no note holds a secret."""
    levels = [("spec.mail", spec.get("mail", {}))]
    levels += [(f"spec.servers[{index}]", server) for index, server in enumerate(spec.get("servers", ()))]
    for path, level in levels:
        yield from _about_service(path, level)
        yield from _about_files(path, level)
        yield from _about_listeners(path, level)
        yield from _about_peers(path, level)


def _about_service(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    url = level.get("authHttp")
    if url is not None:
        try:
            service = auth_http(url)
        except ValueError:
            return  # a problem of its own
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
            f"the value of {name} stands in the manifest in clear; if it is a secret, put it into a Secret: "
            f"{{name: {name}, valueFrom: {{secretKeyRef: {{name: SECRET, key: KEY}}}}}}"
        )
        yield Problem(f"{path}.authHttpHeader[{index}]", reason)


def _about_files(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for index, pair in enumerate(level.get("sslCertificate", ())):
        if "certificateFile" in pair:
            reason = (
                f"{pair['certificateFile']} and {pair['keyFile']} are not in the pod; put them into a Secret "
                "of type kubernetes.io/tls and write {secretName: NAME}"
            )
            yield Problem(f"{path}.sslCertificate[{index}]", reason)
    for field in _FILES:
        written = level.get(field, ())
        for value in written if isinstance(written, list) else [written]:
            if value and "file" in value:
                reason = (
                    f"{value['file']} is not in the pod; put it into a Secret and write "
                    "{secretKeyRef: {name: NAME, key: KEY}}"
                )
                yield Problem(f"{path}.{field}", reason)


def _about_listeners(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for index, listener in enumerate(level.get("listen", ())):
        address = listener.get("address", "*")
        if address.startswith("unix:"):
            yield Problem(f"{path}.listen[{index}]", f"{address} can be reached inside of the pod only")
        elif is_loopback(address):
            reason = f"{address} {_POD}, which nobody else can reach; leave the address out"
            yield Problem(f"{path}.listen[{index}]", reason)
        elif address not in _WILDCARDS:
            yield Problem(f"{path}.listen[{index}]", f"a pod does not have {address}; leave the address out")


def _about_peers(path: str, level: Mapping[str, Any]) -> Iterator[Problem]:
    for server in level.get("resolver", {}).get("addresses", ()):
        if _is_local(server):
            yield Problem(f"{path}.resolver", f"{server} {_POD}; write {{mode: System}} for its name servers")
    for peer in level.get("setRealIpFrom", ()):
        if peer == "unix:" or is_loopback(peer) or peer.startswith(("127.", "::1")):
            reason = f"{peer} {_POD}; name the addresses of your load balancers or nodes"
            yield Problem(f"{path}.setRealIpFrom", reason)


def _is_local(server: str) -> bool:
    try:
        return is_loopback(host_port(server).host)
    except ValueError:
        return False
