# SPDX-License-Identifier: Apache-2.0
"""The programs that tests start, with their Debian packages; skips tests if a program is missing."""

from __future__ import annotations

import os
import platform
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
        "fail2ban-client": "fail2ban",
        "fail2ban-regex": "fail2ban",
        "fetchmail": "fetchmail",
        "haproxy": "haproxy",
        "htpasswd": "apache2-utils",
        "ip": "iproute2",
        "lua5.1": "lua5.1",
        "mutt": "mutt",
        "offlineimap": "offlineimap3",
        "sasl2/libplain.so": "libsasl2-modules",
        "mkpasswd": "whois",
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
"""A program, or a file below a library folder, and the Debian package that contains it.

``.ci/run`` installs these packages; a test compares both lists.
"""

PARTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"dovecot": ("dovecot/imap", "dovecot/pop3", "dovecot/lmtp", "dovecot/submission")}
)
"""Further programs that a program starts, and without which it does not run."""

_PROGRAMS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_LIBRARIES: Final = (
    "/usr/local/libexec",
    "/usr/local/lib",
    "/usr/libexec",
    "/usr/lib",
    "/usr/lib64",
    f"/usr/lib/{platform.machine()}-linux-gnu",
    "/usr/share",
    "/etc",
)


class Needs(Protocol):
    """The fixture ``needs``."""

    def __call__(self, name: str, *, by_root: bool = False) -> str:
        """Return the path of a program, or skip the test; with ``by_root``, also skip without root."""


def find_program(name: str) -> str | None:
    """Find a program, also in the ``sbin`` folders, or a file below a library folder."""
    if "/" in name:
        return next((path for folder in _LIBRARIES if os.path.exists(path := f"{folder}/{name}")), None)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_PROGRAMS]))


def reason(missing: Iterable[str]) -> str:
    """The reason for skipping a test: the missing programs and their Debian packages."""
    listed = [f"{Path(name).name} (Debian: {PACKAGES[name]})" for name in missing]
    return f"needs {', '.join(listed)}"


def require(name: str, *, by_root: bool = False, find: Callable[[str], str | None] = find_program) -> str:
    """Return the path of a program, or skip the test.

    Args:
        name: A key of ``PACKAGES``.
        by_root: Skip the test also if the user is not root.
        find: The function that finds a program.
    """
    missing = [program for program in (name, *PARTS.get(name, ())) if find(program) is None]
    path = find(name)
    if missing or path is None:
        pytest.skip(reason(missing))
    if by_root and os.geteuid() != 0:
        pytest.skip(f"needs root, to start {name}")
    return path
