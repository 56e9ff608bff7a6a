# SPDX-License-Identifier: Apache-2.0
"""Dovecot with IMAP, POP3, LMTP, submission and authentication for Postfix, in a folder of one test."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.servers.programs import Ports, Running

LISTENERS: Final = (
    "imap", "imap_haproxy", "pop3", "pop3_haproxy", "submission", "submission_haproxy", "lmtp", "sasl",
)  # fmt: skip

_CONFIGURATION: Final = """
protocols = imap pop3 lmtp submission
listen = 127.0.0.1
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
auth_verbose = yes
auth_debug = yes
hostname = dovecot.example.org
postmaster_address = postmaster@example.org
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_username_format = %Ln
auth_failure_delay = 0
login_greeting = Dovecot ready.
login_trusted_networks = 127.0.0.1
haproxy_trusted_networks = 127.0.0.1
mail_location = maildir:~/Maildir
mail_uid = {mail_uid}
mail_gid = {mail_gid}
mail_max_userip_connections = 1000
first_valid_uid = 1
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
default_vsz_limit = 0
submission_relay_host = 127.0.0.1
submission_relay_port = {relay_port}
submission_relay_trusted = yes
submission_backend_capabilities = 8BITMIME ENHANCEDSTATUSCODES PIPELINING
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%n {folder}/passwords
}}
userdb {{
  driver = static
  args = uid={mail_uid} gid={mail_gid} home={folder}/mail/%n
}}
service imap-login {{
  chroot =
  service_count = 0
  client_limit = 2000
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imap_haproxy {{
    port = {imap_haproxy}
    haproxy = yes
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  chroot =
  service_count = 0
  client_limit = 2000
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3_haproxy {{
    port = {pop3_haproxy}
    haproxy = yes
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service submission-login {{
  chroot =
  service_count = 0
  client_limit = 2000
  inet_listener submission {{
    port = {submission}
  }}
  inet_listener submission_haproxy {{
    port = {submission_haproxy}
    haproxy = yes
  }}
  inet_listener submissions {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service auth {{
  inet_listener sasl {{
    port = {sasl}
  }}
}}
service imap {{
  process_limit = 1024
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""


@dataclass
class Dovecot:
    """A running Dovecot.

    Attributes:
        ports: The ports of its listeners, by the names of ``LISTENERS``.
        passwords: The password of each user.
    """

    folder: Path
    ports: dict[str, int]
    passwords: dict[str, str]
    running: Running = field(init=False)

    def log(self) -> str:
        """Return its log."""
        return (self.folder / "log").read_text(errors="replace")

    def log_lines(self, *words: str) -> list[str]:
        """Return the lines of the log that contain all these words."""
        return [line for line in self.log().splitlines() if all(word in line for word in words)]


def start(
    path: str, folder: Path, ports: Ports, passwords: dict[str, str], relay_port: int, *, extra: str = ""
) -> Dovecot:
    """Start Dovecot.

    Args:
        path: The path of the program.
        folder: An empty folder that every user may enter.
        ports: The allocator of ports.
        passwords: Users and their passwords.
        relay_port: The SMTP server on loopback to which submission relays its messages.
        extra: Lines of the configuration behind all others.
    """
    dovecot = Dovecot(folder, ports.take_all(*LISTENERS), passwords)
    ids = identities()
    mail = folder / "mail"
    mail.mkdir()
    os.chown(mail, int(ids["mail_uid"]), int(ids["mail_gid"]))
    lines = [f"{user}:{password}" for user, password in passwords.items()]
    (folder / "passwords").write_text("\n".join(lines) + "\n")
    configuration = _CONFIGURATION.format(folder=folder, relay_port=relay_port, **ids, **dovecot.ports)
    (folder / "dovecot.conf").write_text(configuration + extra)
    command = [path, "-F", "-c", str(folder / "dovecot.conf")]
    dovecot.running = Running(command, output=folder / "output")
    try:
        dovecot.running.wait_for_ports(*dovecot.ports.values())
    except AssertionError:
        dovecot.running.stop()
        raise
    return dovecot


def identities() -> dict[str, str]:
    """Return the users of its processes: the users of the package for root, else the current user."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        return {
            "mail_uid": str(nobody.pw_uid),
            "mail_gid": str(nobody.pw_gid),
            "internal_user": "dovecot",
            "internal_group": "dovecot",
            "login_user": "dovenull",
        }
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    return {
        "mail_uid": str(os.geteuid()),
        "mail_gid": str(os.getegid()),
        "internal_user": user,
        "internal_group": group,
        "login_user": user,
    }
