# SPDX-License-Identifier: Apache-2.0
"""fetchmail, mutt and OfflineIMAP log in through the proxy at a real Dovecot, and do their work."""

from __future__ import annotations

import imaplib
import os
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

USER: Final = "carol"
PASSWORD: Final = "christmas"
CAPABILITIES: Final = ["IMAP4rev1", "ENABLE", "IDLE", "LITERAL+", "IMAP4rev2", "MOVE"]


@pytest.fixture(scope="module")
def listeners(
    dovecot: Dovecot, service: AuthService, new_folder: Callable[[str], Path], ports: Ports
) -> Iterator[tuple[Proxy, dict[str, int]]]:
    """A proxy with what mail programs need: ID, the capabilities of Dovecot before login and after it."""
    taken = ports.take_all("imap", "pop3", "smtp")
    for protocol in ("imap", "pop3", "smtp"):
        port = dovecot.ports["submission" if protocol == "smtp" else protocol]
        service.rules[f"/client-{protocol}"] = AuthRule(port)
    servers = [
        {
            "name": f"client-{protocol}",
            "protocol": protocol,
            "listen": [{"address": "127.0.0.1", "port": taken[protocol]}],
            "authHttp": service.url(f"/client-{protocol}"),
        }
        for protocol in ("imap", "pop3", "smtp")
    ]
    mail: dict[str, Any] = {
        "serverName": "front.example.org",
        "imapId": "Answer",
        "imapAuth": ["plain"],
        "imapCapabilities": CAPABILITIES,
        "imapCapabilitiesFrom": "Upstream",
        "imapCapabilityAfterLogin": True,
        "smtpCapabilitiesFrom": "Upstream",
        "smtpAuth": ["plain", "login"],
        "proxySmtpAuth": True,
        "xclient": False,
        "proxySmtpGuard": False,
    }
    proxy = proxies.start(new_folder("clients-proxy"), manifest(servers, mail))
    yield proxy, taken
    proxy.stop()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a mail program that has no files of its own."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def run(command: list[str], *, stdin: str = "", **options: Any) -> str:
    """Run a program that must succeed, and return its output."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=40, check=False, **options
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr  # fetchmail: 1 for no mail
    return done.stdout + done.stderr


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_fetchmail_checks_a_mailbox(
    needs: Needs, listeners: tuple[Proxy, dict[str, int]], tmp_path: Path, protocol: str
) -> None:
    proxy, ports = listeners
    file = tmp_path / "fetchmailrc"
    file.write_text(
        f"poll 127.0.0.1 protocol {protocol} port {ports[protocol]}\n"
        f'  user "{USER}" password "{PASSWORD}" sslproto ""\n'
    )
    file.chmod(0o600)
    command = [needs("fetchmail"), "-f", str(file), "-vv", "--check", "--pidfile", str(tmp_path / "pid")]
    output = run(command, env=environment(tmp_path))
    first = {"imap": "IMAP> A0001 CAPABILITY", "pop3": "POP3> CAPA"}
    assert first[protocol] in output
    proxy.event("session", server=f"client-{protocol}", result="success", errors=0)


def test_offlineimap_sends_id_and_synchronizes(
    needs: Needs, listeners: tuple[Proxy, dict[str, int]], tmp_path: Path
) -> None:
    proxy, ports = listeners
    file = tmp_path / "offlineimaprc"
    file.write_text(
        "[general]\naccounts = one\nui = basic\n"
        f"metadata = {tmp_path}/metadata\n"
        "[Account one]\nlocalrepository = here\nremoterepository = there\n"
        f"[Repository here]\ntype = Maildir\nlocalfolders = {tmp_path}/mail\n"
        f"[Repository there]\ntype = IMAP\nremotehost = 127.0.0.1\nremoteport = {ports['imap']}\n"
        f"remoteuser = {USER}\nremotepass = {PASSWORD}\nssl = no\nstarttls = no\nauth_mechanisms = PLAIN\n"
    )
    command = [needs("offlineimap"), "-o", "-1", "-d", "imap", "-c", str(file)]
    output = run(command, env=environment(tmp_path))
    assert 'ID ("name" "OfflineIMAP"' in output
    assert "OK ID completed." in output
    assert "Finished account 'one'" in output
    assert (tmp_path / "mail" / "INBOX" / "cur").is_dir()
    proxy.event("session", server="client-imap", method="plain", result="success", errors=0)


@pytest.mark.usefixtures("postfix")
def test_mutt_sends_a_message_and_keeps_a_copy(
    needs: Needs, listeners: tuple[Proxy, dict[str, int]], tmp_path: Path
) -> None:
    proxy, ports = listeners
    file = tmp_path / "muttrc"
    file.write_text(
        f"set smtp_url=smtp://{USER}@127.0.0.1:{ports['smtp']}/\nset smtp_pass={PASSWORD}\n"
        f"set imap_user={USER}\nset imap_pass={PASSWORD}\n"
        f"set record=imap://127.0.0.1:{ports['imap']}/INBOX\nset copy=yes\n"
        "set ssl_starttls=no\nset ssl_force_tls=no\nset from=carol@example.org\n"
    )
    subject = tmp_path.name  # other tests send to the same mailbox
    command = [needs("mutt"), "-d", "2", "-F", str(file), "-s", subject, "alice@example.org"]
    run(command, stdin="a line\n", env=environment(tmp_path))
    assert "AUTHENTICATE PLAIN " in (tmp_path / ".muttdebug0").read_text(), "with an initial response"
    proxy.event("session", server="client-smtp", method="plain", result="success", errors=0)
    announced = proxy.event("capabilities_announced", protocol="smtp")["capabilities"].split(", ")
    with smtplib.SMTP("127.0.0.1", ports["smtp"]) as client:
        client.ehlo()
        assert {"chunking", "8bitmime", "auth"} <= client.esmtp_features.keys()
        assert not {"xclient", "vrfy", "burl"} & client.esmtp_features.keys()
    assert {line.partition(" ")[0].lower() for line in announced} | {"auth"} == client.esmtp_features.keys()
    with imaplib.IMAP4("127.0.0.1", ports["imap"]) as mailbox:
        mailbox.login(USER, PASSWORD)
        mailbox.select("INBOX")
        _, found = mailbox.search(None, "SUBJECT", f'"{subject}"')
    assert len(found[0].split()) == 1


def test_clients_get_what_dovecot_lists_before_login(listeners: tuple[Proxy, dict[str, int]]) -> None:
    proxy, ports = listeners
    with imaplib.IMAP4("127.0.0.1", ports["imap"]) as client:
        client.login(USER, PASSWORD)
    proxy.event("capabilities_announced", protocol="imap", capabilities="IMAP4rev1, ENABLE, IDLE, LITERAL+")
    with imaplib.IMAP4("127.0.0.1", ports["imap"]) as client:
        before = client.capabilities
        client.login(USER, PASSWORD)
        _, untagged = client.response("CAPABILITY")
    assert before == ("IMAP4REV1", "ENABLE", "IDLE", "LITERAL+", "ID", "SASL-IR", "AUTH=PLAIN")
    assert untagged is not None
    assert b" MOVE " in untagged[-1], "what Dovecot lists after login"
