# SPDX-License-Identifier: Apache-2.0
"""The mutating webhook: kopf reads and writes the AdmissionReviews, ``sidecar.admission`` decides.

Every operator process serves it, leader or not: the Service forwards requests of the
API server to any of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import kopf

from mailproxy_operator.api import names
from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.kinds import POD, Manifest
from mailproxy_operator.settings import OperatorSettings, Platform, WebhookSettings
from mailproxy_operator.sidecar.admission import Admission, AdmissionDecision, AdmissionRequest
from mailproxy_operator.sidecar.ca_bundle import GivenAuthority, MountedCertificate, OwnCertificate
from mailproxy_operator.sidecar.certificate import server_context
from mailproxy_operator.sidecar.review_server import ReviewServer

HANDLER = "inject"
"""The path of the webhook, which is the id of the handler in kopf."""
REVIEW_SECONDS = 3.0
"""Timeout of a decision; less than the timeout of the webhook, so that a response is always sent."""
REVIEW_SHARE = 0.6
"""The timeout of a decision as a fraction of the configured timeout of the webhook."""
FORBIDDEN = 403

_log = logging.getLogger(__name__)

Recorder = Callable[[str], None]
"""Called with the result for a pod: ``injected``, ``present``, ``ignored``, ``refused`` or ``error``."""


def register(
    registry: kopf.OperatorRegistry,
    admission: Admission,
    *,
    recorder: Recorder,
    seconds: float = REVIEW_SECONDS,
) -> None:
    """Register the handler.

    Args:
        registry: The registry of kopf.
        admission: Decides about pods.
        recorder: Called with the result for each pod.
        seconds: The timeout of a decision.
    """

    @kopf.on.mutate(
        "", POD.api_version, POD.plural, id=HANDLER, operations=["CREATE"],
        labels={names.INJECT: kopf.PRESENT}, side_effects=True, ignore_failures=True, registry=registry,
    )  # fmt: skip
    async def _inject(
        body: kopf.Body, patch: kopf.Patch, warnings: list[str], dryrun: bool, **_: object
    ) -> None:
        pod = _copy(body)
        request = AdmissionRequest.read(pod, str(pod["metadata"].get("namespace", "")), dry_run=dryrun)
        decision = await _decide(admission, request, seconds)
        recorder(decision.result)
        if decision.refusal:
            raise kopf.AdmissionError(decision.refusal, code=FORBIDDEN)
        warnings.extend(decision.warnings)
        if decision.pod is not None:
            patch.fns.append(_replace_with(decision.pod))


async def _decide(admission: Admission, request: AdmissionRequest, seconds: float) -> AdmissionDecision:
    """Decide about a pod; an internal error must not prevent its creation."""
    try:
        async with asyncio.timeout(seconds):
            return await admission.review(request)
    except Exception as failure:
        _log.exception("a pod that requests %s gets no sidecar", request.key)
        text = f"no mailproxy sidecar ({names.INJECT}: {request.key.name}): the operator failed"
        return AdmissionDecision(result="error", warnings=(f"{text}: {type(failure).__name__}",))


def _copy(body: kopf.Body) -> Manifest:
    copied: Manifest = json.loads(json.dumps(dict(body)))
    return copied


def _replace_with(pod: Manifest) -> Callable[[Any], None]:
    def replace(body: Any) -> None:  # noqa: ANN401  the raw body of kopf
        body["metadata"], body["spec"] = pod["metadata"], pod["spec"]

    return replace


def _given_authority(request: WebhookSettings, cluster: KubeClient) -> GivenAuthority | None:
    return (
        GivenAuthority(cluster, request.configuration, request.authorities) if request.authorities else None
    )


class Webhook:
    """The webhook of one operator process.

    Args:
        settings: The settings of the operator.
        cluster: The client for resources and for the webhook's configuration.
        recorder: Called with the result for each pod.

    Attributes:
        server: The webhook server that kopf runs.
    """

    def __init__(self, settings: OperatorSettings, cluster: KubeClient, *, recorder: Recorder) -> None:
        request = settings.webhook or WebhookSettings()
        context = server_context()
        self._settings = settings
        self._cluster = cluster
        self._recorder = recorder
        self._platform: Platform | None = None
        self.server = ReviewServer(request.host, request.port, context)
        self._certificate: OwnCertificate | MountedCertificate = (
            MountedCertificate(request.certificates, context, _given_authority(request, cluster))
            if request.certificates
            else OwnCertificate(cluster, request.configuration, context, holder=settings.identity)
        )
        self._admission = Admission(cluster, self._get_platform, namespaces=settings.namespaces)

    def readiness_error(self) -> str:
        """Return why the API server cannot call the webhook; empty when it can."""
        if not self.server.is_listening:
            return "the webhook does not listen yet"
        return "" if self._certificate.is_ready else "the webhook has no certificate yet"

    async def keep(self) -> None:
        """Keep the certificate and the ``caBundle`` up to date until cancelled."""
        await self._certificate.keep()

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Register the handler."""
        seconds = REVIEW_SHARE * (self._settings.webhook or WebhookSettings()).timeout_seconds
        register(registry, self._admission, recorder=self._recorder, seconds=seconds)

    async def _get_platform(self) -> Platform:
        if self._platform is None:
            version = await self._cluster.version()
            self._platform = self._settings.platform(version)
        return self._platform
