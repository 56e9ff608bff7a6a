# SPDX-License-Identifier: Apache-2.0
"""Keeps the certificate of the webhook valid, and the ``caBundle`` of its configuration up to date.

Either the operator issues its certificate itself, or another program writes one to a
directory.  The operator writes the ``caBundle`` of the webhook's configuration in both
cases: the CA of its own certificate, or the CA from its settings.  So Helm never owns
the field, and a change from one to the other is a rollout in which both CAs are trusted.
The operator does not write the field only if cert-manager does so (by its annotation).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from binascii import Error as NotBase64
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import MUTATING_WEBHOOK, Manifest
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.sidecar import certificate

CHECK_SECONDS = 30.0
RETRY_SECONDS = 2.0
SETTLE_SECONDS = 2.0
"""Delay until every API server has received a new CA."""

_log = logging.getLogger(__name__)


class OwnCertificate:
    """A certificate that this process issues for itself and renews.

    Args:
        store: The client for the webhook's configuration.
        configuration: The name of the MutatingWebhookConfiguration.
        context: The TLS context that uses the certificate.
        holder: The identity of this process, which has one CA in the configuration.
        now: Returns the time.

    Attributes:
        is_ready: Whether the API server can verify the certificate of this process.
    """

    def __init__(
        self,
        store: KubeClient,
        configuration: str,
        context: ssl.SSLContext,
        *,
        holder: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._key = Key("", configuration)
        self._context = context
        self._holder = holder
        self._now = now
        self._identity: certificate.Identity | None = None
        self.is_ready = False

    @property
    def authority(self) -> str:
        """The CA of the current certificate, as PEM; empty before the first certificate is in use."""
        return self._identity.authority if self._identity else ""

    async def keep(self) -> None:
        """Keep the certificate and the ``caBundle`` up to date until cancelled."""
        while True:
            done = False
            try:
                done = await self.refresh()
            except OperatorError as failure:
                _log.warning("the webhook's configuration %s: %s", self._key.name, failure)
            await asyncio.sleep(CHECK_SECONDS if done else RETRY_SECONDS)

    async def refresh(self) -> bool:
        """Check certificate and ``caBundle`` once, and renew or update them if necessary.

        Returns:
            Whether both are up to date.

        Raises:
            OperatorError: A request to the API server failed.
        """
        found = await self._store.get(MUTATING_WEBHOOK, self._key)
        hosts = webhook_hosts(found or {})
        if found is None or not hosts:
            _log.warning("there is no MutatingWebhookConfiguration %s that names a service", self._key.name)
            return False
        identity = self._identity
        if identity is None or identity.hosts != hosts or identity.renew_at <= self._now():
            identity = certificate.issue(hosts, self._holder, self._now())
        if not await _update_bundle(
            self._store, found, identity.authority, self._now(), in_use=self.authority
        ):
            return False
        if identity is not self._identity:
            certificate.use(self._context, identity.certificate, identity.key)
            self._identity, self.is_ready = identity, True
            _log.info("the webhook has a certificate for %s", ", ".join(sorted(hosts)))
        return True


async def _update_bundle(
    store: KubeClient, found: Manifest, authorities: str, now: datetime, *, in_use: str
) -> bool:
    """Write CAs to the ``caBundle``; return false if the configuration has changed in the meantime."""
    operations = _bundle_patch(found, authorities, now, in_use=in_use)
    if not operations:
        return True
    if not await store.patch_json(MUTATING_WEBHOOK, Key("", found["metadata"]["name"]), operations):
        return False
    await asyncio.sleep(SETTLE_SECONDS)
    return True


def _bundle_patch(
    found: Manifest, authorities: str, now: datetime, *, in_use: str
) -> list[Mapping[str, Any]]:
    """Return a JSON patch that adds CAs to the ``caBundle`` of every webhook that lacks them."""
    changes: list[Mapping[str, Any]] = []
    for index, webhook in enumerate(found["webhooks"]):
        bundle = _decoded((webhook.get("clientConfig") or {}).get("caBundle"))
        if not certificate.has_authorities(bundle, authorities):
            added = certificate.add_to_bundle(bundle, authorities, now, in_use=in_use)
            path = f"/webhooks/{index}/clientConfig/caBundle"
            changes.append({"op": "add", "path": path, "value": base64.b64encode(added).decode()})
    version = found["metadata"]["resourceVersion"]
    # Other operator processes add their CAs concurrently: the test prevents overwriting unread changes.
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    return [test, *changes] if changes else []


def webhook_hosts(configuration: Mapping[str, Any]) -> frozenset[str]:
    """Return the names and addresses by which the API server calls the webhooks of a configuration."""
    found = set()
    for webhook in configuration.get("webhooks") or []:
        client = webhook.get("clientConfig") or {}
        service = client.get("service")
        if service:
            found.add(f"{service['name']}.{service['namespace']}.svc")
        elif client.get("url"):
            found.add(urlsplit(client["url"]).hostname or "")
    return frozenset(found - {""})


def _decoded(text: object) -> bytes:
    # cert-manager and Helm charts write an empty bundle as a newline.
    with suppress(NotBase64, ValueError):
        return base64.b64decode(str(text or ""), validate=True)
    return b""


@dataclass(frozen=True, slots=True)
class GivenAuthority:
    """The CA of a certificate that the operator does not issue, for the ``caBundle``.

    Attributes:
        store: The client for the webhook's configuration.
        configuration: The name of the MutatingWebhookConfiguration.
        authorities: The CA certificates, as PEM.
        now: Returns the time.
    """

    store: KubeClient
    configuration: str
    authorities: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def refresh(self) -> bool:
        """Check the ``caBundle`` once, and update it if necessary.

        Returns:
            Whether it contains the CA.

        Raises:
            OperatorError: A request to the API server failed.
        """
        found = await self.store.get(MUTATING_WEBHOOK, Key("", self.configuration))
        if found is None or not found.get("webhooks"):
            _log.warning("there is no MutatingWebhookConfiguration %s", self.configuration)
            return False
        return await _update_bundle(self.store, found, self.authorities, self.now(), in_use="")


class MountedCertificate:
    """A certificate in a directory, as ``tls.crt`` and ``tls.key``, written by another program.

    Args:
        folder: The directory.
        context: The TLS context that uses the certificate.
        authority: The CA for the ``caBundle``; without it, another program writes the ``caBundle``.
    """

    def __init__(
        self, folder: Path, context: ssl.SSLContext, authority: GivenAuthority | None = None
    ) -> None:
        self._folder = folder
        self._context = context
        self._authority = authority
        self._observe: tuple[bytes, bytes] | None = None
        self._is_trusted = authority is None

    @property
    def is_ready(self) -> bool:
        """Whether a certificate was loaded and its CA was in the ``caBundle``."""
        return self._is_trusted and self._observe is not None

    async def keep(self) -> None:
        """Load the certificate from the directory, and reload it after changes, until cancelled."""
        while True:
            self.refresh()
            is_trusted = await self.refresh_bundle()
            await asyncio.sleep(CHECK_SECONDS if self.is_ready and is_trusted else RETRY_SECONDS)

    async def refresh_bundle(self) -> bool:
        """Update the ``caBundle``; after the first success, an error does not affect ``is_ready``."""
        if self._authority is None:
            return True
        try:
            is_trusted = await self._authority.refresh()
        except OperatorError as failure:
            _log.warning("the webhook's configuration %s: %s", self._authority.configuration, failure)
            return False
        self._is_trusted = self._is_trusted or is_trusted
        return is_trusted

    def refresh(self) -> None:
        """Check the files once; files that cannot be used are ignored."""
        files = self._folder / "tls.crt", self._folder / "tls.key"
        try:
            content = files[0].read_bytes(), files[1].read_bytes()
            if content == self._observe:
                return
            certificate.use(self._context, *content)
        except (OSError, ssl.SSLError) as error:
            _log.warning("the webhook's certificate in %s: %s", self._folder, type(error).__name__)
            return
        self._observe = content
        _log.info("the webhook uses the certificate in %s", self._folder)
