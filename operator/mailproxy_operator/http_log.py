# SPDX-License-Identifier: Apache-2.0
"""The log of aiohttp's servers: errors of the operator, without malformed requests of clients."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

LOGGER = logging.getLogger(__name__)


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether a record is about anything but a malformed request, which was answered with 400."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


LOGGER.addFilter(_is_ours)
