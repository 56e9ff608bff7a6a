# SPDX-License-Identifier: Apache-2.0
"""Directives about host names and lists in ``Auth-Server``, which nginx refuses."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from mailproxy_config.value_types import FLAG, Directive, ErrorPath, Inheritance, string_list

_AUTH_HTTP: Final = "mail_auth_http"


def _network(value: str, path: ErrorPath) -> str:
    """Parse an address or a CIDR range; a range without its low bits is the canonical text."""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        network = ip_network("" if "%" in bare else bare, strict=False)  # a zone is no part of a network
    except ValueError:
        raise ValueError(f"{value!r} is neither an address nor a CIDR range such as 127.0.0.0/8") from None
    if str(network.network_address) != str(ip_network(bare.partition("/")[0]).network_address):
        path.problems.notice(path.text, f"low address bits of {value} are meaningless")
    return str(network)


NETWORKS: Final = string_list(_network, syntax="list of address or CIDR range", max_items=64, max_length=64)

UPSTREAM_NAMES_DIRECTIVES: Final = (
    Directive(
        name="auth_http_server_names",
        module=_AUTH_HTTP,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Accepts host names, ports and lists in Auth-Server. Names are looked up with resolver, or with "
            "the DNS servers of the pod."
        ),
    ),
    Directive(
        name="auth_http_server_networks",
        module=_AUTH_HTTP,
        type=NETWORKS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning=(
            "Networks of loopback, link-local and own addresses that names in Auth-Server may resolve to. "
            "Others are refused."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""
