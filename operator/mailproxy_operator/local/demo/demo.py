# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator local --demo``: the mail world around a proxy, and one visit to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import StartTls
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.local.demo import summary
from mailproxy_operator.local.demo.adapt import Adapter, preferred_port, supply_certificates
from mailproxy_operator.local.demo.visit import Place, Visitor
from mailproxy_operator.local.demo.world import MailWorld
from mailproxy_operator.local.machine import LocalCluster
from mailproxy_operator.local.runner import LocalOptions, run_local
from mailproxy_operator.local.source import FileSource

_EVERYWHERE = {"*", "0.0.0.0", "[::]"}  # noqa: S104  compared, not bound


async def run_demo(
    file: Path | None, *, once: bool, say: Callable[[str], None], log: Callable[[str], None]
) -> int:
    """Run the demo on a manifest, the built-in one unless given.

    Returns:
        The exit code: 1 when the visit failed.

    Raises:
        ConfigError: The manifest is not valid.
    """
    with as_file(files(__package__) / "demo.yaml") as builtin:
        path = file or builtin
        asked = FileSource(path).read() or {}
        async with MailWorld(preferred_port(asked)) as world:
            adapt = Adapter(world.auth_url, say)
            with tempfile.TemporaryDirectory(prefix="mailproxy-demo-") as secrets:
                certificate = supply_certificates(adapt(asked), Path(secrets))
                places = places_of(adapt(asked))

                async def visit(cluster: LocalCluster) -> bool:
                    visitor = Visitor(world.account, places, certificate, cluster.admin_url)
                    steps = await asyncio.to_thread(visitor.steps)
                    say(summary.told(steps))
                    is_well = not any(step.problem for step in steps)
                    if is_well and not once:
                        say(summary.invitation(world.account, places, cluster.admin_url, file=str(path)))
                    return is_well

                options = LocalOptions(
                    secrets=Path(secrets), when_ready=visit, once=once, out=None, say=say, log=log
                )
                return await run_local(FileSource(path, adapt), options)


def places_of(body: Manifest) -> dict[str, Place]:
    """Find, for each protocol, a listener to try: the first without implicit TLS."""
    found: dict[str, Place] = {}
    for server in compile_proxy(parse_manifest(body)).servers:
        for listen in server.listen:
            if listen.port is not None and not listen.ssl and not listen.proxy_protocol:
                host = "127.0.0.1" if listen.address in _EVERYWHERE else listen.address.strip("[]")
                place = Place(host, listen.port, server.starttls is not StartTls.DISABLED)
                found.setdefault(server.protocol.value, place)
    return found
