# SPDX-License-Identifier: Apache-2.0
"""The variables that values of ``auth_http_header`` and ``proxy_forward`` may contain: names and syntax.

``protocols/client_variables.py`` has their values.
"""

from __future__ import annotations

import re
from typing import Final

VARIABLE: Final = re.compile(rb"\$(?:\{([a-z_]+)\}|([a-z_]+))")
"""A variable: ``$name`` or ``${name}``."""
VARIABLES: Final = (
    "protocol",
    "remote_addr",
    "remote_port",
    "server_addr",
    "server_port",
    "session_id",
    "ssl_server_name",
)
"""The variables, without ``$``."""


def check_variables(value: str) -> None:
    """Check that all variables of a value exist.

    Raises:
        ValueError: One does not; the message lists those that do.
    """
    for found in VARIABLE.finditer(value.encode()):
        check_name((found[1] or found[2]).decode())


def check_name(name: str) -> None:
    """Check that a variable exists.

    Raises:
        ValueError: It does not; the message lists those that do.
    """
    if name not in VARIABLES:
        known = ", ".join(f"${each}" for each in VARIABLES)
        raise ValueError(f'"${name}" is no variable; there are {known}')
