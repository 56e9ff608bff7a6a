# SPDX-License-Identifier: Apache-2.0
"""Keeps the webhook's certificate good, and the API server's trust in it.

Either the operator makes its certificate itself, or somebody else puts one into
a folder.  The ``caBundle`` of the webhook's configuration is the operator's
either way: it writes the authority of its own certificate, or the one that it
was given for the other's.  So Helm never owns the field, and switching from one
to the other is a rollout in which both are trusted.  Only where cert-manager
writes the field (by its annotation) the operator leaves it alone.
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
"""Until every API server has heard of a new authority."""

_log = logging.getLogger(__name__)


class OwnCertificate:
    """A certificate that this process makes for itself, and renews.

    Args:
        store: Where the webhook's configuration is kept.
        configuration: Its name.
        context: What answers with the certificate.
        holder: Who this process is; it has one authority in the configuration.
        now: Tells the time.

    Attributes:
        is_ready: Whether the API server can trust what this process answers.
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

    async def keep(self) -> None:
        """Keep certificate and trust as they should be, for ever."""
        while True:
            done = False
            try:
                done = await self.refresh()
            except OperatorError as failure:
                _log.warning("the webhook's configuration %s: %s", self._key.name, failure)
            await asyncio.sleep(CHECK_SECONDS if done else RETRY_SECONDS)

    async def refresh(self) -> bool:
        """Look once, and set right what is not.

        Returns:
            Whether everything is as it should be.

        Raises:
            OperatorError: The API server did not do what it was asked.
        """
        found = await self._store.get(MUTATING_WEBHOOK, self._key)
        hosts = called_as(found or {})
        if found is None or not hosts:
            _log.warning("there is no MutatingWebhookConfiguration %s that names a service", self._key.name)
            return False
        wanted = self._identity
        if wanted is None or wanted.hosts != hosts or wanted.renew_at <= self._now():
            wanted = certificate.issue(hosts, self._holder, self._now())
        in_use = self._identity.authority if self._identity else ""
        if not await _trusted(self._store, found, wanted.authority, self._now(), in_use=in_use):
            return False
        if wanted is not self._identity:
            certificate.use(self._context, wanted.certificate, wanted.key)
            self._identity, self.is_ready = wanted, True
            _log.info("the webhook answers as %s", ", ".join(sorted(hosts)))
        return True


async def _trusted(
    store: KubeClient, found: Manifest, authorities: str, now: datetime, *, in_use: str
) -> bool:
    """Have the API server trust authorities; false where the configuration has changed meanwhile."""
    operations = _operations(found, authorities, now, in_use=in_use)
    if not operations:
        return True
    if not await store.patch_json(MUTATING_WEBHOOK, Key("", found["metadata"]["name"]), operations):
        return False
    await asyncio.sleep(SETTLE_SECONDS)
    return True


def _operations(found: Manifest, authorities: str, now: datetime, *, in_use: str) -> list[Mapping[str, Any]]:
    """Write a patch that makes every webhook trust authorities, where one does not yet."""
    changes: list[Mapping[str, Any]] = []
    for index, webhook in enumerate(found["webhooks"]):
        bundle = _decoded((webhook.get("clientConfig") or {}).get("caBundle"))
        if not certificate.trusts(bundle, authorities):
            added = certificate.bundled(bundle, authorities, now, in_use=in_use)
            path = f"/webhooks/{index}/clientConfig/caBundle"
            changes.append({"op": "add", "path": path, "value": base64.b64encode(added).decode()})
    version = found["metadata"]["resourceVersion"]
    # Other operators add theirs at the same time: nobody may overwrite what they have not read.
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    return [test, *changes] if changes else []


def called_as(configuration: Mapping[str, Any]) -> frozenset[str]:
    """Tell under which names and addresses the API server calls the webhooks of a configuration."""
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
    # An empty bundle may be written as a newline: cert-manager and Helm charts do so.
    with suppress(NotBase64, ValueError):
        return base64.b64decode(str(text or ""), validate=True)
    return b""


@dataclass(frozen=True, slots=True)
class GivenAuthority:
    """The authority of somebody else's certificate, which the operator has the API server trust.

    Attributes:
        store: Where the webhook's configuration is kept.
        configuration: Its name.
        authorities: What to trust, as PEM.
        now: Returns the time.
    """

    store: KubeClient
    configuration: str
    authorities: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def refresh(self) -> bool:
        """Look once, and set right what is not.

        Returns:
            Whether it is trusted.

        Raises:
            OperatorError: The API server did not do what it was asked.
        """
        found = await self.store.get(MUTATING_WEBHOOK, Key("", self.configuration))
        if found is None or not found.get("webhooks"):
            _log.warning("there is no MutatingWebhookConfiguration %s", self.configuration)
            return False
        return await _trusted(self.store, found, self.authorities, self.now(), in_use="")


class MountedCertificate:
    """A certificate that somebody else puts into a folder, as ``tls.crt`` and ``tls.key``.

    Args:
        folder: Where.
        context: What answers with it.
        authority: What the API server has to trust for it; without it, somebody else writes the ``caBundle``.

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
        """Whether a certificate was there, and is trusted."""
        return self._is_trusted and self._observe is not None

    async def keep(self) -> None:
        """Use what is in the folder, and what takes its place later, for ever."""
        while True:
            self.refresh()
            is_trusted = await self._trusted()
            await asyncio.sleep(CHECK_SECONDS if self.is_ready and is_trusted else RETRY_SECONDS)

    async def _trusted(self) -> bool:
        """Have it trusted; who was trusted once goes on answering while the API server does not."""
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
        """Look once; what cannot be used changes nothing."""
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
        _log.info("the webhook answers with the certificate in %s", self._folder)
