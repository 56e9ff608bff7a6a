# SPDX-License-Identifier: Apache-2.0
"""The version and the source revision of this installation."""

from __future__ import annotations


def version() -> str:
    """Return the installed distribution's version; ``unknown`` where the sources are not installed."""
    from importlib import metadata  # noqa: PLC0415 - slow to import, and rarely needed

    try:
        return metadata.version("mailproxy")
    except metadata.PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Return the source revision: the local part of the version (``1.2.0+abc1234``), else ``unknown``."""
    return version().partition("+")[2] or "unknown"
