# SPDX-License-Identifier: Apache-2.0
"""What is running: the version, and where it came from."""

from __future__ import annotations


def version() -> str:
    """Give the installed distribution's version; ``unknown`` where the sources run as they are."""
    from importlib import metadata  # noqa: PLC0415 - a start need not wait for it

    try:
        return metadata.version("mailproxy")
    except metadata.PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Give the source revision: the local part of the version (``1.2.0+abc1234``), else ``unknown``."""
    return version().partition("+")[2] or "unknown"
