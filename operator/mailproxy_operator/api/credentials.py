# SPDX-License-Identifier: Apache-2.0
"""Credentials for the API server: the service account in a pod, the kubeconfig elsewhere."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TypeAlias

from kubernetes.aio import client, config

from mailproxy_operator.api.api_tls import RENEW_SECONDS, ApiServerContext, files_fingerprint

Configuration: TypeAlias = client.Configuration
NoCredentials = config.ConfigException


class Credentials:
    """Address and credentials of the API server, read from their files.

    Args:
        configuration: A configuration to use instead of files.
        file: A kubeconfig; the default one if not set.
    """

    def __init__(self, configuration: Configuration | None = None, *, file: str | None = None) -> None:
        self._file = file
        self.configuration = configuration or client.Configuration()
        self._is_given = configuration is not None
        self._read_at = 0.0

    async def read(self) -> Configuration:
        """Read the credentials.

        Raises:
            NoCredentials: There are no credentials.
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
        """Read the credentials again after a refusal or a failed verification of the server's certificate.

        Tokens of kubeconfigs and of their plug-ins expire, and the CA of a cluster can change.

        Returns:
            Whether the credentials have changed.
        """
        if self._is_given or asyncio.get_running_loop().time() - self._read_at < RENEW_SECONDS:
            return False
        before = self._contents()
        with suppress(config.ConfigException, OSError):
            await self.read()
        return self._contents() != before

    def _contents(self) -> tuple[object, ...]:
        current = self.configuration
        files = current.ssl_ca_cert, current.cert_file, current.key_file
        return dict(current.api_key), current.host, *files


def client_context(configuration: Configuration) -> ApiServerContext:
    """Create the TLS context of the Kubernetes client.

    Args:
        configuration: Read again for each connection.
    """

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(
            cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data
        )
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def fingerprint() -> object:
        files = configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file
        return files_fingerprint(*files), configuration.ca_cert_data, configuration.verify_ssl

    return ApiServerContext(make, fingerprint)
