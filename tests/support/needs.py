# SPDX-License-Identifier: Apache-2.0
"""Programs that tests start, the Debian package of each, and the one way to skip a test without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import pytest

MAIL_MODULE: Final = "nginx/modules/ngx_mail_module.so"

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "curl": "curl",
        "dnsmasq": "dnsmasq-base",
        "dovecot": "dovecot-core",
        "dovecot/imap": "dovecot-imapd",
        "dovecot/lmtp": "dovecot-lmtpd",
        "dovecot/pop3": "dovecot-pop3d",
        "dovecot/submission": "dovecot-submissiond",
        "ip": "iproute2",
        "nginx": "nginx-core",
        MAIL_MODULE: "libnginx-mod-mail",
        "openssl": "openssl",
        "postfix": "postfix",
        "prometheus": "prometheus",
        "promtool": "prometheus",
        "setpriv": "util-linux",
        "swaks": "swaks",
        "systemd-analyze": "systemd",
        "unbound": "unbound",
    }
)
"""A program, or a file below a library folder, and the Debian package that has it.

``.ci/run`` installs these packages; a test compares both lists.
"""

PARTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"dovecot": ("dovecot/imap", "dovecot/pop3", "dovecot/lmtp", "dovecot/submission")}
)
"""What a program starts by itself, so that it does not start where one is missing."""

_PROGRAMS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_LIBRARIES: Final = (
    "/usr/local/libexec",
    "/usr/local/lib",
    "/usr/libexec",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share",
    "/etc",
)


class Needs(Protocol):
    """The fixture ``needs``."""

    def __call__(self, name: str, *, by_root: bool = False) -> str:
        """Return the path of a program, or skip the test; ``by_root``: also where the user is not root."""


def find_program(name: str) -> str | None:
    """Find a program, in the folders of administrators too, or a file below a library folder."""
    if "/" in name:
        return next((path for folder in _LIBRARIES if os.path.exists(path := f"{folder}/{name}")), None)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_PROGRAMS]))


def reason(missing: Iterable[str]) -> str:
    """Why a test is skipped: what is missing, and the Debian packages that have it."""
    listed = [f"{Path(name).name} (Debian: {PACKAGES[name]})" for name in missing]
    return f"needs {', '.join(listed)}"


def require(name: str, *, by_root: bool = False, find: Callable[[str], str | None] = find_program) -> str:
    """Return the path of a program, or skip the test.

    Args:
        name: A key of ``PACKAGES``.
        by_root: Skip also where the user is not root.
        find: Finds one of them.
    """
    missing = [one for one in (name, *PARTS.get(name, ())) if find(one) is None]
    path = find(name)
    if missing or path is None:
        pytest.skip(reason(missing))
    if by_root and os.geteuid() != 0:
        pytest.skip(f"needs root, to start {name}")
    return path
