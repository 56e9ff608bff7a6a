# SPDX-License-Identifier: Apache-2.0
"""Startup, liveness and readiness probes."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from typing import Any

from support.kube_api import Object


def port_of(container: Object, port: int | str) -> int:
    """Return the number of a port that is given by number or name."""
    if isinstance(port, int):
        return port
    return next(int(one["containerPort"]) for one in container["ports"] if one["name"] == port)


class Probe:
    """One probe of a container."""

    def __init__(self, definition: Mapping[str, Any] | None, container: Object, address: str) -> None:
        self._definition = definition or {}
        self._container = container
        self._address = address
        self._next = time.monotonic() + self._definition.get("initialDelaySeconds", 0)
        self._failures = self._successes = 0

    def __bool__(self) -> bool:
        return bool(self._definition)

    def result(self) -> bool | None:
        """Probe if it is time to; return ``True`` or ``False`` when a threshold is reached, else ``None``."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._definition.get("periodSeconds", 10)
        if self._succeeds():
            self._failures, self._successes = 0, self._successes + 1
            return True if self._successes >= self._definition.get("successThreshold", 1) else None
        self._failures, self._successes = self._failures + 1, 0
        return False if self._failures >= self._definition.get("failureThreshold", 3) else None

    def _succeeds(self) -> bool:
        timeout = self._definition.get("timeoutSeconds", 1)
        try:
            if "httpGet" in self._definition:
                return self._get(self._definition["httpGet"], timeout)
            port = port_of(self._container, self._definition["tcpSocket"]["port"])
            with socket.create_connection((self._address, port), timeout=timeout):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _get(self, target: Mapping[str, Any], timeout: float) -> bool:
        port = port_of(self._container, target["port"])
        connection = http.client.HTTPConnection(self._address, port, timeout=timeout)
        try:
            connection.request("GET", target.get("path", "/"))
            return 200 <= connection.getresponse().status < 400
        finally:
            connection.close()
