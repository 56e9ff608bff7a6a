# SPDX-License-Identifier: Apache-2.0
"""The mutating webhook: kopf reads and writes the AdmissionReviews, ``sidecar.admission`` decides.

It is served by every operator process, whether or not it holds the Lease: a
Service sends the API server to any of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import kopf
from aiohttp import web

from mailproxy_operator import names
from mailproxy_operator.kinds import POD, Manifest
from mailproxy_operator.kube import KubeCluster
from mailproxy_operator.settings import OperatorSettings, Platform, WebhookSettings
from mailproxy_operator.sidecar.admission import Admission, Asked, Verdict
from mailproxy_operator.sidecar.certificate import server_context
from mailproxy_operator.sidecar.trust import GivenAuthority, MountedCertificate, OwnCertificate
from mailproxy_operator.watching import Watching, kopf_settings

HANDLER = "inject"
"""The path under which it is called."""
REVIEW_SECONDS = 3.0
"""Less than the webhook's own timeout, so that the API server gets an answer in any case."""
REVIEW_SHARE = 0.6
"""The same for another timeout than the usual one, as a share of it."""
READ_SECONDS = 3.0
MAX_REVIEW_OCTETS = 3 * 1024 * 1024
MAX_AT_ONCE = 16
FORBIDDEN = 403

_log = logging.getLogger(__name__)

Told = Callable[[str], None]
"""Told what became of a pod: ``injected``, ``present``, ``ignored``, ``refused`` or ``error``."""


class ReviewServer:
    """Answers AdmissionReviews over TLS, in the way that kopf wants its servers.

    Args:
        host: Where to listen.
        port: Where to listen; 0 for a free one.
        context: Whose certificate may be replaced meanwhile.

    Attributes:
        port: Where it listens.
        is_listening: Whether it answers.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host.strip("[]")
        self._socket = _listening(self._host, port)
        self.port = int(self._socket.getsockname()[1])
        self._context = context
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self.is_listening = False

    async def __call__(self, reviewed: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serve for as long as it is iterated over.

        Args:
            reviewed: Makes an answer of a review.
        """

        async def answer(request: web.Request) -> web.Response:
            return await self._answer(request, reviewed)

        if self._socket.fileno() < 0:  # it was closed when kopf ended, and kopf has begun again
            self._socket = _listening(self._host, self.port)
        app = web.Application(client_max_size=MAX_REVIEW_OCTETS)
        app.router.add_post("/{id}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket, ssl_context=self._context).start()
            self.is_listening = True
            yield {"url": f"https://localhost:{self.port}"}
            await asyncio.Event().wait()
        finally:
            self.is_listening = False
            await runner.cleanup()

    async def _answer(self, request: web.Request, reviewed: kopf.WebhookFn) -> web.Response:
        try:
            async with self._gate:
                async with asyncio.timeout(READ_SECONDS):
                    review = _located(json.loads(await request.read()))
                return web.json_response(await reviewed(review, webhook=request.match_info["id"]))
        except web.HTTPException:
            raise
        except Exception as error:  # whoever can connect may send anything; kopf fails in many ways at that
            _log.warning("a request that is not an AdmissionReview for us: %s", type(error).__name__)
            return web.Response(status=400, text="not an AdmissionReview for this webhook\n")


def _listening(host: str, port: int) -> socket.socket:
    if host != "::":
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))  # noqa: S104  all there is, where there is no IPv6


def _located(review: Any) -> Any:  # noqa: ANN401  JSON from anybody
    """Let the object say in which namespace it will be: kopf hands on the object only."""
    asked = review["request"]
    if asked.get("object"):
        asked["object"]["metadata"].setdefault("namespace", asked.get("namespace", ""))
    return review


def register(
    registry: kopf.OperatorRegistry, admission: Admission, *, told: Told, seconds: float = REVIEW_SECONDS
) -> None:
    """Attach the handler.

    Args:
        registry: Where to.
        admission: Who decides.
        told: Told what became of each pod.
        seconds: How long a decision may take.
    """

    @kopf.on.mutate(
        "", POD.api_version, POD.plural, id=HANDLER, operations=["CREATE"],
        labels={names.INJECT: kopf.PRESENT}, side_effects=True, ignore_failures=True, registry=registry,
    )  # fmt: skip
    async def _inject(
        body: kopf.Body, patch: kopf.Patch, warnings: list[str], dryrun: bool, **_: object
    ) -> None:
        pod = _plain(body)
        asked = Asked.read(pod, str(pod["metadata"].get("namespace", "")), is_trial=dryrun)
        verdict = await _decided(admission, asked, seconds)
        told(verdict.result)
        if verdict.refusal:
            raise kopf.AdmissionError(verdict.refusal, code=FORBIDDEN)
        warnings.extend(verdict.warnings)
        if verdict.pod is not None:
            patch.fns.append(_replacing(verdict.pod))


async def _decided(admission: Admission, asked: Asked, seconds: float) -> Verdict:
    """Decide; whatever fails on our side must not keep a pod from running."""
    try:
        async with asyncio.timeout(seconds):
            return await admission.review(asked)
    except Exception as failure:
        _log.exception("a pod that asks for %s gets no sidecar", asked.key)
        told = f"no mailproxy sidecar ({names.INJECT}: {asked.key.name}): the operator could not decide"
        return Verdict(result="error", warnings=(f"{told}: {type(failure).__name__}",))


def _plain(body: kopf.Body) -> Manifest:
    copied: Manifest = json.loads(json.dumps(dict(body)))
    return copied


def _replacing(pod: Manifest) -> Callable[[Any], None]:
    def replace(body: Any) -> None:  # noqa: ANN401  kopf's raw body
        body["metadata"], body["spec"] = pod["metadata"], pod["spec"]

    return replace


def _given(asked: WebhookSettings, cluster: KubeCluster) -> GivenAuthority | None:
    return GivenAuthority(cluster, asked.configuration, asked.authorities) if asked.authorities else None


class Webhook:
    """The webhook of one operator process.

    Args:
        settings: What was asked for.
        cluster: Where resources are read, and the webhook's configuration is kept.
        watching: Runs kopf, which looks up what pods are.
        told: Told what became of each pod.
    """

    def __init__(
        self, settings: OperatorSettings, cluster: KubeCluster, *, watching: Watching, told: Told
    ) -> None:
        asked = settings.webhook or WebhookSettings()
        context = server_context()
        self._settings = settings
        self._cluster = cluster
        self._watching = watching
        self._told = told
        self._platform: Platform | None = None
        self._server = ReviewServer(asked.host, asked.port, context)
        self._certificate: OwnCertificate | MountedCertificate = (
            MountedCertificate(asked.certificates, context, _given(asked, cluster))
            if asked.certificates
            else OwnCertificate(cluster, asked.configuration, context, holder=settings.identity)
        )
        self._admission = Admission(cluster, self._known_platform, namespaces=settings.namespaces)

    @property
    def port(self) -> int:
        """Where it answers."""
        return self._server.port

    @property
    def is_ready(self) -> bool:
        """Whether the API server can call it."""
        return self._server.is_listening and self._certificate.is_ready

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._certificate.keep())
            tasks.create_task(self._watching.keep(self._register, self._kopf_settings))

    def _register(self, registry: kopf.OperatorRegistry) -> None:
        seconds = REVIEW_SHARE * (self._settings.webhook or WebhookSettings()).timeout_seconds
        register(registry, self._admission, told=self._told, seconds=seconds)

    def _kopf_settings(self) -> kopf.OperatorSettings:
        settings = kopf_settings()
        settings.admission.server = self._server
        return settings

    async def _known_platform(self) -> Platform:
        if self._platform is None:
            version = await self._cluster.version()
            self._platform = self._settings.platform(version)
        return self._platform
