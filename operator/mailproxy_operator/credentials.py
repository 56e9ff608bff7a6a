# SPDX-License-Identifier: Apache-2.0
"""How the operator gets in at the API server: a service account in a pod, the kubeconfig elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TypeAlias

from kubernetes.aio import client, config

RENEW_SECONDS = 5.0
"""Credentials that are refused are not read again more often than this."""

Configuration: TypeAlias = client.Configuration
CannotConfigure = config.ConfigException


class Credentials:
    """Address and credentials, read where they stand.

    Args:
        configuration: Uses these and reads nothing.
        file: A kubeconfig; the usual one where not given.
    """

    def __init__(self, configuration: Configuration | None = None, *, file: str | None = None) -> None:
        self._file = file
        self.configuration = configuration or client.Configuration()
        self._is_given = configuration is not None
        self._read_at = 0.0

    async def read(self) -> Configuration:
        """Read them.

        Raises:
            CannotConfigure: There are none.
        """
        self._read_at = asyncio.get_running_loop().time()
        if self._is_given:
            return self.configuration
        try:
            config.load_incluster_config(client_configuration=self.configuration)  # type: ignore[no-untyped-call]  # theirs
        except config.ConfigException:
            await config.load_kube_config(self._file, client_configuration=self.configuration)  # type: ignore[no-untyped-call]  # theirs
        return self.configuration

    async def renew(self) -> bool:
        """Read them again after they were refused: the tokens of kubeconfigs and of their plug-ins expire.

        Returns:
            Whether there are others now.
        """
        if self._is_given or asyncio.get_running_loop().time() - self._read_at < RENEW_SECONDS:
            return False
        before = dict(self.configuration.api_key)
        with suppress(config.ConfigException, OSError):
            await self.read()
        return bool(self.configuration.api_key != before)
