# SPDX-License-Identifier: Apache-2.0
"""``proxySslService``: the Service that the mail servers of a server block are.

It exists in resources only.  The operator takes TLS settings from the BackendTLSPolicy of this Service;
the proxy does not use the field, and the compiled configuration does not contain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_config.schema import Object, String

FIELD: Final = "proxySslService"


@dataclass(frozen=True, slots=True, order=True)
class ServiceRef:
    """A Service in the namespace of the resource, and the name of one of its ports; empty for any."""

    name: str
    port: str = ""


SERVICE_REF: Final = Object(
    fields={
        "name": String(
            max_length=63,
            min_length=1,
            pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$",
            hint="the name of a Service: lower-case letters, digits and hyphens",
        ),
        "port": String(
            max_length=15,
            min_length=1,
            pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            hint="the name of a port: lower-case letters, digits and hyphens",
        ),
    },
    required=("name",),
    example="{name: SERVICE}",
    descriptions={
        "name": "Name of the Service, in the namespace of the MailProxy.",
        "port": "Name of its port. Needed if a policy is for one port (sectionName).",
    },
)

MEANING: Final = (
    "Service whose BackendTLSPolicy sets proxySslName and proxySslTrustedCertificate, unless they are set. "
    "Needs proxySsl. Used by the operator only; no directive of nginx."
)


def refers_to_service(spec: object) -> bool:
    """Return whether a ``spec``, valid or not, has the field anywhere."""
    if not isinstance(spec, Mapping):
        return False
    servers = spec.get("servers")
    levels = (spec.get("mail"), *(servers if isinstance(servers, list) else ()))
    return any(isinstance(level, Mapping) and FIELD in level for level in levels)


def upstream_services(spec: Mapping[str, Any]) -> dict[str, ServiceRef]:
    """Return the Services by name of the server; a server's own field wins over that of ``mail``.

    Args:
        spec: A valid ``spec``.
    """
    shared = (spec.get("mail") or {}).get(FIELD)
    found = {server["name"]: server.get(FIELD) or shared for server in spec.get("servers") or ()}
    return {name: ServiceRef(value["name"], value.get("port", "")) for name, value in found.items() if value}
