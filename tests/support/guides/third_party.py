# SPDX-License-Identifier: Apache-2.0
"""Schemas of other products' kinds, with the fields that the guides use; an unknown field is an error.

The products' own definitions are used where the folder ``$GUIDE_CRDS`` has them, on a real API server
(tests/kubernetes/test_guides.py).
"""

from __future__ import annotations

from typing import Any, Final

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # has no types of its own

Object = dict[str, Any]

_TEXT: Final = {"type": "string"}
_BOOL: Final = {"type": "boolean"}
_PORT: Final = {"type": "integer", "minimum": 1, "maximum": 65535}
_TEXTS: Final = {"type": "array", "minItems": 1, "items": _TEXT}
_MAP: Final = {"type": "object", "additionalProperties": _TEXT}
_DURATION: Final = {"pattern": "^([0-9]+(ms|s|m|h))+$"}
_VALUES: Final = {"type": "object"}


def _closed(required: str = "", **properties: Any) -> Object:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def _list(item: Object) -> Object:
    return {"type": "array", "minItems": 1, "items": item}


_REFERENCE: Final = _closed("kind name", kind=_TEXT, name=_TEXT, namespace=_TEXT)
_KEY: Final = _closed("name key", name=_TEXT, key=_TEXT)
_SOURCE: Final = _closed(
    "repoURL targetRevision path",
    repoURL=_TEXT,
    targetRevision=_TEXT,
    path=_TEXT,
    helm=_closed(
        releaseName=_TEXT, valuesObject=_VALUES, apiVersions=_TEXTS, kubeVersion=_TEXT, skipTests=_BOOL
    ),
)
_CRDS: Final = {"enum": ["Skip", "Create", "CreateReplace"]}
_RETRIES: Final = _closed("retries", retries={"type": "integer"})
_HEALTH_EXPRESSION: Final = _closed(
    "apiVersion kind current", apiVersion=_TEXT, kind=_TEXT, current=_TEXT, failed=_TEXT, inProgress=_TEXT
)

_SPECS: Final[dict[tuple[str, str], Object]] = {
    ("metallb.io/v1beta1", "IPAddressPool"): _closed("addresses", addresses=_TEXTS, autoAssign=_BOOL),
    ("metallb.io/v1beta1", "L2Advertisement"): _closed(ipAddressPools=_TEXTS),
    ("gateway.networking.k8s.io/v1", "Gateway"): _closed(
        "gatewayClassName listeners",
        gatewayClassName=_TEXT,
        listeners=_list(
            _closed(
                "name port protocol",
                name=_TEXT,
                port=_PORT,
                protocol={"const": "TCP"},
                allowedRoutes=_closed(kinds=_list(_closed("kind", kind={"const": "TCPRoute"}))),
            )
        ),
    ),
    ("gateway.networking.k8s.io/v1", "TCPRoute"): _closed(
        "rules",
        parentRefs=_list(_closed("name", name=_TEXT, sectionName=_TEXT)),
        rules=_list(_closed("backendRefs", backendRefs=_list(_closed("name port", name=_TEXT, port=_PORT)))),
    ),
    ("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy"): _closed(
        targetRefs=_list(_closed("group kind name", group=_TEXT, kind=_TEXT, name=_TEXT)),
        proxyProtocol=_closed("version", version={"enum": ["V1", "V2"]}),
    ),
    ("cert-manager.io/v1", "ClusterIssuer"): _closed(
        acme=_closed(
            "server privateKeySecretRef",
            server=_TEXT,
            email=_TEXT,
            privateKeySecretRef=_closed("name", name=_TEXT),
            solvers=_list(
                _closed(
                    dns01=_closed(
                        cloudflare=_closed(apiTokenSecretRef=_KEY),
                    ),
                    http01=_closed(
                        gatewayHTTPRoute=_closed(
                            parentRefs=_list(_closed("name", name=_TEXT, namespace=_TEXT, kind=_TEXT))
                        )
                    ),
                )
            ),
        ),
    ),
    ("cert-manager.io/v1", "Certificate"): _closed(
        "secretName issuerRef",
        secretName=_TEXT,
        dnsNames=_TEXTS,
        duration=_DURATION,
        renewBefore=_DURATION,
        privateKey=_closed(
            algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
            size={"type": "integer"},
            rotationPolicy={"enum": ["Never", "Always"]},
        ),
        issuerRef=_closed("name", name=_TEXT, kind=_TEXT, group=_TEXT),
    ),
    ("argoproj.io/v1alpha1", "Application"): _closed(
        "destination project source",
        project=_TEXT,
        source=_SOURCE,
        destination=_closed(server=_TEXT, namespace=_TEXT),
        syncPolicy=_closed(automated=_closed(prune=_BOOL, selfHeal=_BOOL), syncOptions=_TEXTS),
        ignoreDifferences=_list(
            _closed("kind", group=_TEXT, kind=_TEXT, name=_TEXT, jqPathExpressions=_TEXTS)
        ),
    ),
    ("source.toolkit.fluxcd.io/v1", "GitRepository"): _closed(
        "interval url", interval=_DURATION, url=_TEXT, ref=_closed(branch=_TEXT, tag=_TEXT)
    ),
    ("helm.toolkit.fluxcd.io/v2", "HelmRelease"): _closed(
        "interval",
        interval=_DURATION,
        timeout=_DURATION,
        releaseName=_TEXT,
        targetNamespace=_TEXT,
        chart=_closed(
            "spec",
            spec=_closed(
                "chart sourceRef",
                chart=_TEXT,
                reconcileStrategy={"enum": ["ChartVersion", "Revision"]},
                sourceRef=_REFERENCE,
            ),
        ),
        install=_closed(crds=_CRDS, createNamespace=_BOOL, remediation=_RETRIES),
        upgrade=_closed(crds=_CRDS, remediation=_RETRIES),
        driftDetection=_closed(
            mode={"enum": ["enabled", "warn", "disabled"]},
            ignore=_list(_closed("paths", paths=_TEXTS, target=_closed(kind=_TEXT, name=_TEXT))),
        ),
        values=_VALUES,
    ),
    ("kustomize.toolkit.fluxcd.io/v1", "Kustomization"): _closed(
        "interval prune sourceRef",
        interval=_DURATION,
        timeout=_DURATION,
        path=_TEXT,
        prune=_BOOL,
        wait=_BOOL,
        sourceRef=_REFERENCE,
        dependsOn=_list(_closed("name", name=_TEXT, namespace=_TEXT)),
        retryInterval=_DURATION,
        healthChecks=_list(_closed("kind name", apiVersion=_TEXT, kind=_TEXT, name=_TEXT, namespace=_TEXT)),
        healthCheckExprs=_list(_HEALTH_EXPRESSION),
    ),
}


def is_known(body: Object) -> bool:
    """Whether there is a schema for the kind of an object."""
    return (body["apiVersion"], body["kind"]) in _SPECS


def third_party_errors(body: Object) -> list[str]:
    """Return the errors of an object, with their paths."""
    schema = _closed(
        "apiVersion kind metadata spec",
        apiVersion=_TEXT,
        kind=_TEXT,
        metadata=_closed(
            "name", name=_TEXT, namespace=_TEXT, labels=_MAP, annotations=_MAP, finalizers=_TEXTS
        ),
        spec=_SPECS[body["apiVersion"], body["kind"]],
    )
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(body)]
