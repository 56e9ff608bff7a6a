# SPDX-License-Identifier: Apache-2.0
"""Which BackendTLSPolicy applies to a Service, what it sets, and what is wrong with it.  Pure.

Source: the API reference of ``gateway.networking.k8s.io/v1``, BackendTLSPolicy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailproxy_config.secret_refs import KeyRef, ReferenceKind
from mailproxy_config.upstream_service import ServiceRef
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.reasons import PolicyReason

CA_KEY = "ca.crt"
"""The key of a ConfigMap or Secret with CA certificates, as the Gateway API defines it."""
MAX_ANCESTORS = 16
_REFERENCE_KINDS = {"ConfigMap": ReferenceKind.CONFIG_MAP, "Secret": ReferenceKind.SECRET}

ConfigMapKeys = Mapping[str, frozenset[str]]
"""The keys of the ConfigMaps that exist, by name."""


@dataclass(frozen=True, slots=True)
class PolicyCondition:
    """One condition of a policy: whether it is met, the reason, the message."""

    is_met: bool
    reason: PolicyReason
    message: str


ACCEPTED = PolicyCondition(True, PolicyReason.ACCEPTED, "the policy is used for connections to this Service")
RESOLVED = PolicyCondition(True, PolicyReason.RESOLVED_REFS, "all references are resolved")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """What a policy sets.

    Attributes:
        name: The name that certificates must have, sent in SNI.
        authorities: The CA certificates; ``None`` for those of the image.
    """

    name: str
    authorities: KeyRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVerdict:
    """What becomes of a policy.

    Attributes:
        settings: What it sets; ``None`` if it cannot be used.
    """

    accepted: PolicyCondition = ACCEPTED
    resolved: PolicyCondition = RESOLVED
    settings: TlsSettings | None = None

    @property
    def is_good(self) -> bool:
        """Whether the policy is used without a finding."""
        return self.accepted.is_met and self.resolved.is_met


def invalid(message: str) -> PolicyVerdict:
    """Return the verdict about a policy that cannot be used."""
    return PolicyVerdict(accepted=PolicyCondition(False, PolicyReason.INVALID, message))


def conflicted(winner: Manifest) -> PolicyVerdict:
    """Return the verdict about a policy that is not used because of an older one."""
    message = f"the older policy {name_of(winner)} is for the same Service and port"
    return PolicyVerdict(accepted=PolicyCondition(False, PolicyReason.CONFLICTED, message))


def name_of(policy: Manifest) -> str:
    """Return the name of a policy."""
    return str(policy["metadata"]["name"])


def applicable(policies: Iterable[Manifest], service: ServiceRef) -> list[Manifest]:
    """Return the policies for a Service, the one that wins first; the others are in conflict with it.

    A policy for the port (``sectionName``) wins over one for all ports, which then is in no conflict.  Among
    equal ones the oldest wins, then the first in alphabetical order.
    """
    found = [(policy, _section_names(policy, service.name)) for policy in policies]
    of_port = [policy for policy, sections in found if service.port and service.port in sections]
    of_all = [policy for policy, sections in found if "" in sections]
    return sorted(of_port or of_all, key=_seniority)


def policies_of_ports(policies: Iterable[Manifest], service: ServiceRef) -> list[str]:
    """Return the ports of a Service that have a policy of their own."""
    sections = {section for policy in policies for section in _section_names(policy, service.name)}
    return sorted(sections - {""})


def _section_names(policy: Manifest, service: str) -> set[str]:
    return {
        str(ref.get("sectionName") or "")
        for ref in policy["spec"].get("targetRefs") or ()
        if (ref.get("group") or "", ref.get("kind"), ref.get("name")) == ("", "Service", service)
    }


def _seniority(policy: Manifest) -> tuple[str, str]:
    return str(policy["metadata"].get("creationTimestamp") or ""), name_of(policy)


def referenced_config_maps(policy: Manifest) -> set[str]:
    """Return the names of the ConfigMaps that a policy refers to."""
    refs = _authority_refs(policy["spec"].get("validation") or {})
    return {
        str(ref["name"]) for ref in refs if (ref.get("group") or "", ref.get("kind")) == ("", "ConfigMap")
    }


def _authority_refs(validation: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return validation.get("caCertificateRefs") or ()


def examine(policy: Manifest, config_maps: ConfigMapKeys) -> PolicyVerdict:
    """Return what a policy sets, or what is wrong with it.

    Args:
        policy: The policy.
        config_maps: The ConfigMaps of its namespace that exist.
    """
    validation = policy["spec"].get("validation") or {}
    hostname = str(validation.get("hostname") or "")
    if not hostname:
        return invalid("validation.hostname is empty")
    if _other_names(validation, hostname):
        return invalid(
            "validation.subjectAltNames is not supported, unless it is validation.hostname alone; remove it, "
            "and set hostname to the name that the certificate has"
        )
    refs = _authority_refs(validation)
    if not refs:
        return _of_system(validation, hostname)
    if len(refs) > 1:
        return invalid(
            "validation.caCertificateRefs has several references; put all certificates into one ConfigMap"
        )
    return _of_reference(refs[0], hostname, config_maps)


def _other_names(validation: Mapping[str, Any], hostname: str) -> bool:
    names = validation.get("subjectAltNames") or ()
    return any((one.get("type"), one.get("hostname")) != ("Hostname", hostname) for one in names)


def _of_system(validation: Mapping[str, Any], hostname: str) -> PolicyVerdict:
    if validation.get("wellKnownCACertificates") != "System":
        return invalid("validation has neither caCertificateRefs nor wellKnownCACertificates: System")
    return PolicyVerdict(settings=TlsSettings(name=hostname, authorities=None))


def _of_reference(ref: Mapping[str, Any], hostname: str, config_maps: ConfigMapKeys) -> PolicyVerdict:
    kind = _REFERENCE_KINDS.get(str(ref.get("kind"))) if not ref.get("group") else None
    name = str(ref.get("name") or "")
    if kind is None:
        message = f"caCertificateRefs: {ref.get('kind')} is not supported, only ConfigMap and Secret"
        return PolicyVerdict(
            accepted=_no_authority(message),
            resolved=PolicyCondition(False, PolicyReason.INVALID_KIND, message),
        )
    # Settings are kept without the object: new pods wait for it, and old ones keep what they have.
    settings = TlsSettings(name=hostname, authorities=KeyRef(kind, name, CA_KEY))
    problem = _problem_of_config_map(name, config_maps) if kind is ReferenceKind.CONFIG_MAP else ""
    if not problem:
        return PolicyVerdict(settings=settings)
    return PolicyVerdict(
        accepted=_no_authority(problem),
        resolved=PolicyCondition(False, PolicyReason.INVALID_CA_CERTIFICATE_REF, problem),
        settings=settings,
    )


def _no_authority(message: str) -> PolicyCondition:
    return PolicyCondition(False, PolicyReason.NO_VALID_CA_CERTIFICATE, message)


def _problem_of_config_map(name: str, config_maps: ConfigMapKeys) -> str:
    if name not in config_maps:
        return f"caCertificateRefs: ConfigMap {name} does not exist; create it with the key {CA_KEY}"
    return "" if CA_KEY in config_maps[name] else f"caCertificateRefs: ConfigMap {name} has no key {CA_KEY}"
