# SPDX-License-Identifier: Apache-2.0
"""What the demo tells: what happened, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mailproxy_demo.login_check import Place, Step
from mailproxy_demo.memory_mailbox import Account


def told(steps: Sequence[Step]) -> str:
    """Tell how each step went."""
    return "\n".join(
        f"  {'FAILED' if step.problem else 'ok':6} {step.name:8} {step.problem or step.told}"
        f" ({step.milliseconds:.0f} ms)"
        for step in steps
    )


def invitation(account: Account, places: Mapping[str, Place], admin: str, *, file: str) -> str:
    """Tell what is where, and which commands to try."""
    lines = ["", f"User {account.user}, password {account.password}. The proxy listens here:", ""]
    lines += [
        f"  {name.upper():5} {place.host}:{place.port}{' (STARTTLS)' if place.offers_starttls else ''}"
        for name, place in places.items()
    ]
    lines += ["", "Try:", ""]
    lines += [f"  {command}" for command in _commands(account, places, admin)]
    lines += ["", f"Metrics: {admin}/metrics   Configuration: {admin}/config", ""]
    lines += [f"Edit {file} to see it reload. Ctrl-C drains and ends the demo.", ""]
    return "\n".join(lines)


def _commands(account: Account, places: Mapping[str, Place], admin: str) -> list[str]:
    user, password, found = account.user, account.password, list[str]()
    if "smtp" in places:
        at = f"{places['smtp'].host}:{places['smtp'].port}"
        found.append(f"swaks --server {at} --auth PLAIN --au {user} --ap {password} --to bob@example.test")
    if "imap" in places:
        at = f"{places['imap'].host}:{places['imap'].port}"
        found.append(f"curl -k --ssl-reqd -u {user}:{password} 'imap://{at}/INBOX;MAILINDEX=1'")
        found.append(
            f"openssl s_client -quiet -crlf -starttls imap -connect {at}   # a LOGIN {user} {password}"
        )
    if "pop3" in places:
        place = places["pop3"]
        found.append(f"curl -k --ssl-reqd -u {user}:{password} pop3://{place.host}:{place.port}/1")
        found.append(f"nc -C {place.host} {place.port}   # USER {user}, PASS {password}, STAT, QUIT")
    return [*found, f"curl -s {admin}/metrics | grep ^mailproxy_logins_total"]
