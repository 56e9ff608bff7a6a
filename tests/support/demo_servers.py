# SPDX-License-Identifier: Apache-2.0
"""The demo's mail servers, in a process of their own: Twisted allows one reactor in a process.

``python demo_servers.py`` starts them, prints their ports as JSON, and ends them at the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mailproxy_demo.auth_http_service import Account
from mailproxy_demo.reactor import install_reactor

ACCOUNT: Final = Account()


@dataclass(frozen=True)
class DemoServers:
    """The servers of a running process.

    Attributes:
        auth_url: The URL of the authentication service.
        ports: The port of each mail server on 127.0.0.1, by protocol.
    """

    auth_url: str
    ports: dict[str, int]


@contextmanager
def demo_servers() -> Iterator[DemoServers]:
    """Start the servers; end them afterwards.  What Twisted logged as an error is raised."""
    with subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            yield DemoServers(**json.loads(line))
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


async def _serve() -> None:
    reactor = install_reactor(lambda line: sys.stderr.write(f"{line}\n"))
    from mailproxy_demo.mail_servers import MailServers

    async with MailServers(reactor) as servers:
        sys.stdout.write(json.dumps({"auth_url": servers.auth_url, "ports": servers.ports}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
