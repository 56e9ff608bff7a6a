# SPDX-License-Identifier: Apache-2.0
"""Postfix as a mail server that a guide's lines are added to; as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.guides.dovecot import ADDRESS, answers_at
from support.servers.programs import Running, eventually

_MAIN: Final = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log/mail
maillog_file_prefixes = {folder}/log
syslog_name = postfix
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.example.com
mydomain = example.com
mydestination =
mynetworks = 127.0.0.8/32
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = example.com
virtual_mailbox_maps = inline:{{ alice@example.com=yes }}
virtual_transport = discard:
default_transport = discard:
smtpd_peername_lookup = no
"""

_MASTER: Final = """
{address}:{smtp} inet n - n - - smtpd
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
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
tlsproxy unix - - n - 0 tlsproxy
dnsblog unix - - n - 0 dnsblog
"""


@dataclass
class GuidePostfix:
    """A running Postfix with the lines of a guide."""

    folder: Path
    running: Running = field(init=False)

    def log(self) -> str:
        """Return its log."""
        return (self.folder / "log/mail").read_text(errors="replace")

    def logged(self, *words: str) -> str:
        """Wait for a line of the log with all these words, and return it."""

        def found() -> str:
            lines = [line for line in self.log().splitlines() if all(word in line for word in words)]
            return lines[-1] if lines else ""

        try:
            return eventually(found, f"a line with {words}", timeout=20)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def stop(self) -> None:
        """Stop the daemon, which has left the process group of its start command; then stop that command."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            daemon = int((self.folder / "queue/pid/master.pid").read_text())
            os.kill(daemon, signal.SIGTERM)
            self.running.wait_for_exit()
        self.running.stop()


def start(path: str, folder: Path, main: str, master: str, ports: dict[str, int]) -> GuidePostfix:
    """Start Postfix on the address of the guides' mail servers.

    Args:
        path: The path of the program ``postfix``.
        folder: An empty folder that every user may enter.
        main: The guide's lines of ``main.cf``.
        master: The guide's lines of ``master.cf``; the port of a service is replaced.
        ports: ``smtp``, and the port on this machine for each port of ``master``.
    """
    postfix = GuidePostfix(folder)
    for name in ("etc", "queue", "data", "log"):
        (folder / name).mkdir()
    (folder / "data").chmod(0o700)
    shutil.chown(folder / "data", "postfix")
    (folder / "etc/main.cf").write_text(_MAIN.format(folder=folder) + main)
    for written, port in ports.items():
        master = master.replace(f"\n{written} ", f"\n{ADDRESS}:{port} ")
    (folder / "etc/master.cf").write_text(_MASTER.format(address=ADDRESS, smtp=ports["smtp"]) + master)
    postfix.running = Running([path, "-c", str(folder / "etc"), "start-fg"], output=folder / "output")
    try:
        for port in ports.values():
            postfix.running.eventually(lambda port=port: answers_at(ADDRESS, port), "Postfix")  # type: ignore[misc]
    except AssertionError:
        postfix.stop()
        raise
    return postfix
