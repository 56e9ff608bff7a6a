# SPDX-License-Identifier: Apache-2.0
"""Where aiohttp's servers log: faults of ours, and not what anybody who can connect may send."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

LOGGER = logging.getLogger(__name__)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is about more than a malformed request, which was answered with 400."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


LOGGER.addFilter(_is_ours)
