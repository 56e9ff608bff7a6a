# SPDX-License-Identifier: Apache-2.0
"""Dovecot's login proxy as a peer: its configuration in the mode for high performance."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PROGRAM: Final = "dovecot"
PACKAGES: Final = "dovecot-imapd dovecot-pop3d dovecot-submissiond"
LISTENERS: Final = ("imap", "pop3", "smtp", "imaps", "pop3s", "smtps")
_SERVICES: Final = (("imap", "imap", "imaps"), ("pop3", "pop3", "pop3s"), ("submission", "smtp", "smtps"))

_CONFIGURATION: Final = """
protocols = imap pop3 submission
listen = 127.0.0.1
base_dir = {folder}/dovecot-run
state_dir = {folder}/dovecot-state
log_path = /dev/null
info_log_path = /dev/null
debug_log_path = /dev/null
auth_verbose = no
login_log_format_elements =
hostname = mail.example.com
postmaster_address = postmaster@example.com
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
auth_cache_size = 0
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = 1
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
default_vsz_limit = 0
default_client_limit = {connections}
ssl = yes
ssl_cert = <{folder}/ecdsa.crt
ssl_key = <{folder}/ecdsa.key
ssl_min_protocol = TLSv1.2
submission_relay_host = 127.0.0.1
submission_backend_capabilities = 8BITMIME
passdb {{
  driver = static
  args = nopassword=y proxy=y host=127.0.0.1 port={port} proxy_not_trusted=y proxy_noauth=y
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home=/nonexistent
}}
{services}
service auth {{
  client_limit = {connections}
}}
service anvil {{
  chroot =
  client_limit = {connections}
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""
_PORT: Final = "%{{if;%s;eq;imap;{imap};%{{if;%s;eq;pop3;{pop3};{smtp}}}}}"
_SERVICE: Final = """
service {service}-login {{
  chroot =
  service_count = 0
  process_min_avail = {workers}
  process_limit = {workers}
  client_limit = {connections}
  inet_listener {plain} {{
    port = {plain_port}
  }}
  inet_listener {tls} {{
    port = {tls_port}
    ssl = yes
  }}
}}
"""


def configuration(
    folder: Path,
    listeners: Mapping[str, int],
    upstreams: Mapping[str, int],
    *,
    workers: int,
    connections: int,
) -> str:
    """Return ``dovecot.conf``.

    One process per protocol serves all its clients (``service_count = 0``).  Logs
    are off.  Any password is accepted.  ``proxy_not_trusted`` leaves out ``ID``
    and ``XCLIENT`` to upstreams: fewer commands than nginx sends to SMTP servers.

    Args:
        folder: Has ``ecdsa.crt`` and ``ecdsa.key``.
        listeners: The port of each of ``LISTENERS``.
        upstreams: The port of the upstream of ``imap``, ``pop3`` and ``smtp``.
        workers: Login processes of each protocol.
        connections: The maximum of clients of a login process, which has two descriptors for each.
    """
    services = []
    for service, plain, tls in _SERVICES:
        services.append(
            _SERVICE.format(
                service=service,
                workers=workers,
                connections=connections,
                plain=service,
                plain_port=listeners[plain],
                tls=f"{service}s",
                tls_port=listeners[tls],
            )
        )
    return _CONFIGURATION.format(
        folder=folder,
        connections=connections,
        port=_PORT.format(**upstreams),
        services="".join(services),
        **_identities(),
    )


def _identities() -> dict[str, object]:
    """Return the users of its processes: those of its package for root, else the current user."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        ids = {"internal_user": "dovecot", "internal_group": "dovecot", "login_user": "dovenull"}
        return {"uid": nobody.pw_uid, "gid": nobody.pw_gid, **ids}
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    ids = {"internal_user": user, "internal_group": group, "login_user": user}
    return {"uid": os.geteuid(), "gid": os.getegid(), **ids}
