# SPDX-License-Identifier: Apache-2.0
"""Postfix: accepts XCLIENT and PROXY headers from loopback, delivers to Dovecot."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.servers.programs import Ports, Running

DOMAIN: Final = "example.org"
"""The domain whose mail Postfix delivers; it discards or rejects other mail."""

_MAIN: Final = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log/mail
maillog_file_prefixes = {folder}/log
syslog_name = postfix
inet_interfaces = 127.0.0.1
inet_protocols = all
myhostname = mx.{domain}
mydomain = {domain}
myorigin = {domain}
mydestination =
mynetworks =
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = {domain}
virtual_mailbox_maps = inline:{{ {mailboxes} }}
virtual_transport = lmtp:inet:127.0.0.1:{lmtp_port}
default_transport = discard:
smtpd_banner = mx.{domain} ESMTP Postfix
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{sasl_port}
smtpd_sasl_authenticated_header = yes
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access inline:{{ {{ later@{domain} = 450 4.2.1 Try later }} }}
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_error_sleep_time = 0
smtpd_client_port_logging = yes
smtpd_helo_required = no
message_size_limit = 67108864
mailbox_size_limit = 0
virtual_mailbox_limit = 0
"""

_MASTER: Final = """
127.0.0.1:{smtp} inet n - n - - smtpd
127.0.0.1:{smtp_haproxy} inet n - n - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass
class Postfix:
    """A running Postfix; ``ports`` has ``smtp`` and ``smtp_haproxy``."""

    folder: Path
    ports: dict[str, int]
    running: Running = field(init=False)

    def log(self) -> str:
        """Return its log."""
        return (self.folder / "log/mail").read_text(errors="replace")

    def stop(self) -> None:
        """Stop the daemon, which has left the process group of its start command; then stop that command."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            daemon = int((self.folder / "queue/pid/master.pid").read_text())
            os.kill(daemon, signal.SIGTERM)
            self.running.wait_for_exit()
        self.running.stop()

    def log_lines(self, *words: str) -> list[str]:
        """Return the lines of the log that contain all these words."""
        return [line for line in self.log().splitlines() if all(word in line for word in words)]


@dataclass(frozen=True)
class DovecotPorts:
    """The ports of Dovecot."""

    lmtp_port: int
    sasl_port: int


def start(
    path: str,
    folder: Path,
    ports: dict[str, int],
    dovecot_ports: DovecotPorts,
    users: Iterable[str],
    extra: str = "",
) -> Postfix:
    """Start Postfix, as root, with a mailbox for each user.

    Args:
        path: The path of the program ``postfix``.
        folder: An empty folder that every user may enter.
        ports: The ports ``smtp`` and ``smtp_haproxy``.
        dovecot_ports: The ports of Dovecot for delivery and authentication.
        users: Local parts at ``DOMAIN``.
        extra: Lines of ``main.cf`` behind all others.
    """
    postfix = Postfix(folder, ports)
    for name in ("etc", "queue", "data", "log"):
        (folder / name).mkdir()
    (folder / "data").chmod(0o700)
    shutil.chown(folder / "data", "postfix")
    mailboxes = ", ".join(f"{{ {user}@{DOMAIN} = yes }}" for user in (*users, "later"))
    main = _MAIN.format(
        folder=folder,
        domain=DOMAIN,
        mailboxes=mailboxes,
        lmtp_port=dovecot_ports.lmtp_port,
        sasl_port=dovecot_ports.sasl_port,
    )
    (folder / "etc/main.cf").write_text(main + extra)
    (folder / "etc/master.cf").write_text(_MASTER.format(**ports))
    postfix.running = Running([path, "-c", str(folder / "etc"), "start-fg"], output=folder / "output")
    try:
        postfix.running.wait_for_ports(*ports.values())
    except AssertionError:
        postfix.stop()
        raise
    return postfix


def take_ports(ports: Ports) -> dict[str, int]:
    """Return its ports, which Dovecot needs before its own start."""
    return ports.take_all("smtp", "smtp_haproxy")
