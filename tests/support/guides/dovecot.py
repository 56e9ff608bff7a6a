# SPDX-License-Identifier: Apache-2.0
"""Dovecot 2.3 or 2.4 as a mail server that a guide's file is added to.

It listens on an address other than the proxy's: Dovecot takes a connection from its own
address for a secured one, and would allow what it refuses to a proxy on another machine.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.servers.dovecot import identities
from support.servers.programs import Running, eventually, run_program

ADDRESS: Final = "127.0.0.5"
"""The address of the mail servers of the guides."""

_COMMON: Final = """
protocols = imap pop3 submission
listen = {address}
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
hostname = mail.example.com
ssl = no
mail_uid = {mail_uid}
mail_gid = {mail_gid}
first_valid_uid = 1
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
submission_relay_host = 127.0.0.1
submission_relay_port = {relay_port}
submission_relay_trusted = yes
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service submission-login {{
  chroot =
  inet_listener submission {{
    port = {submission}
  }}
  inet_listener submissions {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""

_OF_VERSION: Final = {
    "2.3": """
mail_location = maildir:~/Maildir
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/passwords
}}
userdb {{
  driver = static
  args = uid={mail_uid} gid={mail_gid} home={folder}/mail/%n
}}
""",
    "2.4": """
mail_driver = maildir
mail_path = ~/Maildir
passdb passwd-file {{
  passwd_file_path = {folder}/passwords
  default_password_scheme = PLAIN
}}
userdb static {{
  fields {{
    uid = {mail_uid}
    gid = {mail_gid}
    home = {folder}/mail/%{{user | username}}
  }}
}}
""",
}

_FIRST: Final = {"2.3": "", "2.4": "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"}


def version_of(path: str) -> str:
    """Return the version of a Dovecot, such as ``2.3``."""
    found = re.match(r"\d+\.\d+", run_program([path, "--version"]))
    assert found is not None
    return found[0]


@dataclass
class GuideDovecot:
    """A running Dovecot with the file of a guide."""

    folder: Path
    version: str
    running: Running = field(init=False)

    def log(self) -> str:
        """Return its log."""
        return (self.folder / "log").read_text(errors="replace")

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
        """Stop it."""
        self.running.stop()


def start(
    path: str, folder: Path, added: str, ports: dict[str, int], passwords: dict[str, str]
) -> GuideDovecot:
    """Start Dovecot on ``ADDRESS``.

    Args:
        path: The path of the program.
        folder: An empty folder that every user may enter.
        added: The guide's file, with ports of this machine.
        ports: ``imap``, ``pop3``, ``submission``, the SMTP server ``relay_port`` that submission relays to,
            and the listeners of ``added`` under any name.
        passwords: The password of each user.
    """
    dovecot = GuideDovecot(folder, version_of(path))
    ids = identities()
    (folder / "mail").mkdir()
    os.chown(folder / "mail", int(ids["mail_uid"]), int(ids["mail_gid"]))
    lines = [f"{user}:{password}" for user, password in passwords.items()]
    (folder / "passwords").write_text("\n".join(lines) + "\n")
    (folder / "99-mailproxy.conf").write_text(added)
    template = _FIRST[dovecot.version] + _COMMON + _OF_VERSION[dovecot.version]
    text = template.format(folder=folder, address=ADDRESS, **ids, **ports)
    (folder / "dovecot.conf").write_text(f"{text}!include {folder}/99-mailproxy.conf\n")
    command = [path, "-F", "-c", str(folder / "dovecot.conf")]
    dovecot.running = Running(command, output=folder / "output")
    try:
        dovecot.running.eventually(lambda: answers_at(ADDRESS, ports["imap"]), "Dovecot")
    except AssertionError:
        dovecot.running.stop()
        raise
    return dovecot


def answers_at(address: str, port: int) -> bool:
    """Return whether a port of an address accepts connections."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True
