# SPDX-License-Identifier: Apache-2.0
"""Keeps the webhook's certificate good, and the API server's trust in it.

Either the operator makes its certificate itself and writes the authority into
the webhook's configuration, or somebody else (cert-manager) puts a certificate
into a folder and sees to the configuration.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from binascii import Error as NotBase64
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mailproxy_operator.cluster import Key
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.kinds import MUTATING_WEBHOOK, Kind, Manifest
from mailproxy_operator.sidecar import certificate

CHECK_SECONDS = 30.0
RETRY_SECONDS = 2.0
SETTLE_SECONDS = 2.0
"""Until every API server has heard of a new authority."""

_log = logging.getLogger(__name__)


class WebhookStore(Protocol):
    """Where the webhook's configuration is kept."""

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object."""

    async def patch_json(self, kind: Kind, key: Key, operations: Sequence[Mapping[str, Any]]) -> bool:
        """Patch an object (RFC 6902); false where it is not as the patch expects."""


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
        store: WebhookStore,
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
        operations = self._operations(found, wanted)
        if operations and not await self._store.patch_json(MUTATING_WEBHOOK, self._key, operations):
            return False
        if operations:
            await asyncio.sleep(SETTLE_SECONDS)
        if wanted is not self._identity:
            certificate.use(self._context, wanted.certificate, wanted.key)
            self._identity, self.is_ready = wanted, True
            _log.info("the webhook answers as %s", ", ".join(sorted(hosts)))
        return True

    def _operations(self, found: Manifest, wanted: certificate.Identity) -> list[Mapping[str, Any]]:
        """Write a patch that makes every webhook of the configuration trust us, where one does not yet."""
        changes: list[Mapping[str, Any]] = []
        in_use = self._identity.authority if self._identity else ""
        for index, webhook in enumerate(found["webhooks"]):
            bundle = _decoded((webhook.get("clientConfig") or {}).get("caBundle"))
            if not certificate.trusts(bundle, wanted.authority):
                added = certificate.bundled(bundle, wanted.authority, self._now(), in_use=in_use)
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


class MountedCertificate:
    """A certificate that somebody else puts into a folder, as ``tls.crt`` and ``tls.key``.

    Args:
        folder: Where.
        context: What answers with it.

    Attributes:
        is_ready: Whether one was there.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext) -> None:
        self._folder = folder
        self._context = context
        self._seen: tuple[bytes, bytes] | None = None
        self.is_ready = False

    async def keep(self) -> None:
        """Use what is in the folder, and what takes its place later, for ever."""
        while True:
            self.refresh()
            await asyncio.sleep(CHECK_SECONDS if self.is_ready else RETRY_SECONDS)

    def refresh(self) -> None:
        """Look once; what cannot be used changes nothing."""
        files = self._folder / "tls.crt", self._folder / "tls.key"
        try:
            content = files[0].read_bytes(), files[1].read_bytes()
            if content == self._seen:
                return
            certificate.use(self._context, *content)
        except (OSError, ssl.SSLError) as error:
            _log.warning("the webhook's certificate in %s: %s", self._folder, type(error).__name__)
            return
        self._seen, self.is_ready = content, True
        _log.info("the webhook answers with the certificate in %s", self._folder)
