# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator local --demo``: mail servers around a proxy, and one login through each protocol."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import StartTls
from mailproxy_demo.adapter import ManifestAdapter, auth_port, create_certificates
from mailproxy_demo.auth_http_service import Account
from mailproxy_demo.local import LocalOptions, run_local
from mailproxy_demo.local_cluster import LocalCluster
from mailproxy_demo.login_check import Endpoint, LoginCheck, Step
from mailproxy_demo.manifest_file import ManifestFile
from mailproxy_demo.reactor import install_reactor
from mailproxy_operator.api.kinds import Manifest

DEFAULT_MANIFEST = Path(__file__).parents[2] / "deploy/examples/demo.yaml"
_ANY_ADDRESS = {"*", "0.0.0.0", "[::]"}  # noqa: S104  compared, not bound


async def run_demo(
    file: Path | None, *, once: bool, report: Callable[[str], None], log: Callable[[str], None]
) -> int:
    """Run the demo on a manifest: ``deploy/examples/demo.yaml`` by default.

    Returns:
        The exit code: 1 when a login failed.

    Raises:
        ConfigError: The manifest is not valid.
    """
    path = file or DEFAULT_MANIFEST
    manifest = ManifestFile(path).read() or {}
    reactor = install_reactor(report)
    from mailproxy_demo.mail_servers import MailServers  # noqa: PLC0415  needs the reactor

    async with MailServers(reactor, auth_port(manifest)) as servers:
        adapt = ManifestAdapter(servers.auth_url, report)
        with tempfile.TemporaryDirectory(prefix="mailproxy-demo-") as secrets:
            certificate = create_certificates(adapt(manifest), Path(secrets))
            endpoints = find_endpoints(adapt(manifest))

            async def check(cluster: LocalCluster) -> bool:
                logins = LoginCheck(servers.account, endpoints, certificate, cluster.admin_url)
                steps = await asyncio.to_thread(logins.run)
                report(format_steps(steps))
                has_passed = not any(step.error for step in steps)
                if has_passed and not once:
                    report(instructions(servers.account, endpoints, cluster.admin_url, file=str(path)))
                return has_passed

            options = LocalOptions(
                secrets=Path(secrets), when_ready=check, once=once, out=None, report=report, log=log
            )
            return await run_local(ManifestFile(path, adapt), options)


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


def instructions(account: Account, endpoints: Mapping[str, Endpoint], admin: str, *, file: str) -> str:
    """Return the addresses of everything that runs, and commands to try."""
    user, password = account.user, account.password
    places, commands = list[str](), list[str]()
    for name, endpoint in endpoints.items():
        at = f"{endpoint.host}:{endpoint.port}"
        places.append(f"{name.upper():5} {at}{' (STARTTLS)' if endpoint.has_starttls else ''}")
        commands += {
            "imap": [
                f"curl -k --ssl-reqd -u {user}:{password} 'imap://{at}/INBOX;MAILINDEX=1'",
                f"openssl s_client -quiet -crlf -starttls imap -connect {at}   # a LOGIN {user} {password}",
            ],
            "pop3": [
                f"curl -k --ssl-reqd -u {user}:{password} pop3://{at}/1",
                f"nc -C {endpoint.host} {endpoint.port}   # USER {user}, PASS {password}, STAT, QUIT",
            ],
            "smtp": [f"swaks --server {at} --auth PLAIN --au {user} --ap {password} --to bob@example.test"],
        }[name]
    commands.append(f"curl -s {admin}/metrics | grep ^mailproxy_logins_total")
    return "\n".join(
        [
            "",
            f"User {user}, password {password}. The proxy listens here:",
            "",
            *(f"  {place}" for place in places),
            "",
            "Try:",
            "",
            *(f"  {command}" for command in commands),
            "",
            f"Metrics: {admin}/metrics   Configuration: {admin}/config",
            "",
            f"Edit {file} to see it reload. Ctrl-C drains and ends the demo.",
            "",
        ]
    )
