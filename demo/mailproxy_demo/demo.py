# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator local --demo``: mail servers around a proxy, and one login through each protocol."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import StartTls
from mailproxy_demo.adapter import ManifestAdapter, auth_port, create_certificates, usable
from mailproxy_demo.addresses import TLS, Address, find_addresses, format_addresses
from mailproxy_demo.auth_http_service import Account
from mailproxy_demo.local import LocalOptions, run_local
from mailproxy_demo.local_cluster import LocalCluster
from mailproxy_demo.login_check import Endpoint, LoginCheck, Step
from mailproxy_demo.manifest_file import ManifestFile
from mailproxy_demo.reactor import install_reactor
from mailproxy_demo.upstreams import needs_auth_service, wanted_ports
from mailproxy_operator.api.kinds import Manifest

DEFAULT_MANIFEST = Path(__file__).parents[2] / "deploy/examples/demo.yaml"
_ANY_ADDRESS = {"*", "0.0.0.0", "[::]"}  # noqa: S104  compared, not bound


async def run_demo(
    file: Path | None,
    *,
    once: bool,
    events: bool = False,
    report: Callable[[str], None],
    log: Callable[[str], None],
) -> int:
    """Run the demo on a manifest: ``deploy/examples/demo.yaml`` by default.

    Returns:
        The exit code: 1 when a login failed.

    Raises:
        ConfigError: The manifest is not valid.
    """
    path = file or DEFAULT_MANIFEST
    manifest = ManifestFile(path).read() or {}
    has_service = needs_auth_service(manifest)
    report(headline(path, has_service=has_service))
    quiet = QuietLog(log)
    reactor = install_reactor(report)
    from mailproxy_demo.mail_servers import MailServers  # noqa: PLC0415  needs the reactor

    service_port = auth_port(manifest) if has_service else None
    wanted = {name: usable(port) for name, port in wanted_ports(manifest).items()}
    async with MailServers(reactor, service_port, wanted) as servers:
        adapt = ManifestAdapter(servers.auth_url, servers.ports, report)
        with tempfile.TemporaryDirectory(prefix="mailproxy-demo-") as secrets:
            certificate = create_certificates(adapt(manifest), Path(secrets))
            endpoints = find_endpoints(adapt(manifest))

            async def check(cluster: LocalCluster) -> bool:
                logins = LoginCheck(servers.account, endpoints, certificate, cluster.admin_url)
                steps = await asyncio.to_thread(logins.run)
                report(f"One login with each protocol:\n\n{format_steps(steps)}")
                has_passed = not any(step.error for step in steps)
                if has_passed and not once:
                    addresses = find_addresses(adapt(manifest))
                    report(instructions(servers.account, addresses, cluster.admin_url, file=str(path)))
                if not has_passed or not once:
                    quiet.open(with_kept=not has_passed)
                return has_passed

            options = LocalOptions(
                secrets=Path(secrets),
                when_ready=check,
                once=once,
                out=None,
                report=report,
                log=quiet,
                events=events,
            )
            code = await run_local(ManifestFile(path, adapt), options)
            if code:
                quiet.open(with_kept=True)
            return code


def find_endpoints(manifest: Manifest) -> dict[str, Endpoint]:
    """Return the first listener without implicit TLS of each protocol."""
    found: dict[str, Endpoint] = {}
    for server in compile_proxy(parse_manifest(manifest)).servers:
        for listen in server.listen:
            if listen.port is not None and not listen.ssl and not listen.proxy_protocol:
                host = "127.0.0.1" if listen.address in _ANY_ADDRESS else listen.address.strip("[]")
                endpoint = Endpoint(host, listen.port, server.starttls is not StartTls.DISABLED)
                found.setdefault(server.protocol.value, endpoint)
    return found


def format_steps(steps: Sequence[Step]) -> str:
    """Return one line for each step: its result and its duration."""
    return "\n".join(
        f"  {'FAILED' if step.error else 'ok':6} {step.name:8} {step.error or step.result}"
        f" ({step.milliseconds:.0f} ms)"
        for step in steps
    )


def headline(path: Path, *, has_service: bool = False) -> str:
    """Return what the demo starts.

    Args:
        path: The manifest.
        has_service: Whether the manifest needs an authentication service.
    """
    behind = (
        ("behind it an authentication service", "and mail servers")
        if has_service
        else ("behind it mail servers,", "which check the passwords")
    )
    return "\n".join(
        [
            f"MailProxy demo: starts a proxy for IMAP, POP3 and SMTP, and {behind[0]}",
            f"{behind[1]}, all on loopback. The proxy runs {path}, rendered as in a cluster.",
            "",
        ]
    )


def instructions(account: Account, addresses: Sequence[Address], admin: str, *, file: str) -> str:
    """Return the addresses of the proxy, and commands to try."""
    return "\n".join(
        [
            "",
            f"The proxy listens here. The user is {account.user}, the password {account.password}:",
            "",
            *format_addresses(addresses),
            "",
            *(line for hint, command in _commands(account, addresses) for line in (hint, f"  {command}", "")),
            "Count the logins (Prometheus metrics):",
            f"  curl -s {admin}/metrics | grep '^mailproxy_logins_total.* [1-9]'",
            "",
            "Show which configuration runs:",
            f"  curl -s {admin}/config",
            "",
            f"Edit {file}: the proxy loads the change, and open sessions continue.",
            "Ctrl-C drains the proxy and ends the demo. The proxy's log follows.",
            "",
        ]
    )


def _commands(account: Account, addresses: Sequence[Address]) -> Iterator[tuple[str, str]]:
    """Yield hints and commands, each with the first suitable address of its protocol."""
    login = f"-u {account.user}:{account.password}"
    plain = {one.protocol: one for one in reversed(addresses) if one.security != TLS and _is_simple(one)}
    tls = {one.protocol: one for one in reversed(addresses) if one.security == TLS and _is_simple(one)}
    if "imap" in plain:
        at, starttls = plain["imap"].text, _needs_tls(plain["imap"])
        yield "Read the message by IMAP:", f"curl -s{starttls}{login} 'imap://{at}/INBOX;MAILINDEX=1'"
    if "pop3" in tls:
        yield "Read it by POP3 over TLS:", f"curl -sk {login} pop3s://{tls['pop3'].text}/1"
    if "smtp" in plain:
        at, starttls = plain["smtp"].text, _needs_tls(plain["smtp"])
        rcpt = "--mail-rcpt bob@example.test"
        yield (
            "Send another one by SMTP:",
            f"echo 'Subject: Hi' | curl -s{starttls}{login} {rcpt} -T - smtp://{at}",
        )
    if "imap" in tls:
        yield (
            f"Type IMAP yourself, such as: a LOGIN {account.user} {account.password}",
            f"openssl s_client -quiet -crlf -connect {tls['imap'].text}",
        )


def _is_simple(address: Address) -> bool:
    return not address.expects_proxy_header and not address.text.startswith("unix:")


def _needs_tls(address: Address) -> str:
    """Return the rest of ``-s`` with curl's options for STARTTLS; the certificate is self-signed."""
    return "k --ssl-reqd " if "STARTTLS" in address.security else " "


class QuietLog:
    """Keeps back the proxy's log of normal events until the demo has printed its instructions.

    Args:
        log: Receives the lines.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._kept: list[str] = []
        self._is_open = False

    def __call__(self, line: str) -> None:
        """Pass a line on, or keep it back if it is of a level below ``warn``."""
        if self._is_open or line.split()[1:2] not in (["debug"], ["info"], ["notice"]):
            self._log(line)
        else:
            self._kept.append(line)

    def open(self, *, with_kept: bool) -> None:
        """Pass on all lines from now on, and those that were kept back if requested."""
        self._is_open = True
        kept, self._kept = self._kept, []
        for line in kept if with_kept else []:
            self._log(line)
