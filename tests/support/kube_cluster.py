# SPDX-License-Identifier: Apache-2.0
"""The two API servers for the operator's tests, with the same interface."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Final

import yaml

from support.kube_api import Api, ApiUser, Object
from support.kube_server import KubeServer, Programs, kube_server
from support.operator_fakekube import FakeKube
from support.servers.programs import TIMEOUT_SECONDS, Ports, Running, eventually

ROOT: Final = Path(__file__).parents[2]
SYSTEM: Final = "mailproxy-system"
ACCOUNT: Final = "mailproxy-operator"
USER: Final = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"

REAL: Final = "kube-apiserver"
EMULATED: Final = "emulated"
"""The names of the two API servers, as used by the fixture ``cluster``."""

_SOURCES: Final = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "proxy")])
_PORTS: Final = Ports()


def manifests(*parts: str) -> list[Object]:
    """Return the documents of a file of ``deploy/``."""
    text = ROOT.joinpath("deploy", *parts).read_text(encoding="utf-8")
    return [document for document in yaml.safe_load_all(text) if document]


@dataclass
class Cluster:
    """An API server and how to reach it.

    Attributes:
        api: Sends requests as a user with all rights.
        folder: The folder for files that a test needs.
        server: The real API server; ``None`` if it is emulated.
    """

    api: Api
    folder: Path
    server: KubeServer | None = None
    _token: str = field(default="", repr=False)

    @property
    def is_real(self) -> bool:
        """Whether it is a real API server."""
        return self.server is not None

    def operator_token(self) -> str:
        """Return a token of the service account that has exactly the rights of ``deploy/rbac.yaml``."""
        if self.server is None:
            return "emulated"
        self._token = self._token or self.server.token(SYSTEM, ACCOUNT)
        return self._token

    def new_operator_token(self) -> str:
        """Return another token, for use after the service account was created again."""
        self._token = ""
        return self.operator_token()

    def kubeconfig(self, name: str, token: str) -> Path:
        """Write a kubeconfig with this token."""
        where: dict[str, str] = {"server": self.api.user.url}
        if self.api.user.authority is not None:
            where["certificate-authority"] = str(self.api.user.authority)
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": where}],
                    "users": [{"name": name, "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                }
            )
        )
        path.chmod(0o600)
        return path


@contextmanager
def real_cluster(found: Programs, folder: Path) -> Iterator[Cluster]:
    """Run a real API server on which ``deploy/crd.yaml`` and ``deploy/rbac.yaml`` are installed."""
    with kube_server(found, folder) as server:
        api = server.admin
        _ = api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}).checked_body
        for manifest in [*manifests("crd.yaml"), *manifests("rbac.yaml")]:
            _ = api.apply(manifest).checked_body
        listing = "/apis/mailproxy.dev/v1alpha1/mailproxies"
        eventually(lambda: api.get(listing).status == 200, "the new kind to be served")
        yield Cluster(api, folder, server)


@contextmanager
def emulated_cluster(folder: Path) -> Iterator[Cluster]:
    """Run the emulated API server in a thread of its own."""
    fake, started, loop = FakeKube(), Event(), asyncio.new_event_loop()

    async def serve(stop: asyncio.Event) -> None:
        async with fake:
            started.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = Thread(target=lambda: loop.run_until_complete(serve(stop)))
    thread.start()
    try:
        assert started.wait(TIMEOUT_SECONDS), "the emulated API server did not start"
        yield Cluster(Api(ApiUser(fake.url)), folder)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(TIMEOUT_SECONDS)
        loop.close()


class Operator(Running):
    """``mailproxy-operator run`` as a process with a kubeconfig.

    Attributes:
        admin: The admin endpoint on loopback, with ``/metrics``, ``/healthz`` and ``/readyz``.

    Args:
        modules: Folders that Python searches before the product's.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        kubeconfig: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        modules: Sequence[Path] = (),
    ) -> None:
        port = _PORTS.take()
        sources = os.pathsep.join([*map(str, modules), _SOURCES])
        self.admin = ApiUser(f"http://127.0.0.1:{port}")
        self._port = port
        super().__init__(
            [
                sys.executable,
                "-m",
                "mailproxy_operator",
                "run",
                f"--admin=127.0.0.1:{port}",
                *options,
            ],
            output=cluster.folder / f"{name}.log",
            env={
                "KUBECONFIG": str(kubeconfig),
                "PYTHONPATH": sources,
                "POD_NAMESPACE": "",
                **(environment or {}),
            },
        )

    def started(self) -> Operator:
        """Wait until it serves its own metrics."""
        self.wait_for_ports(self._port)
        return self

    def lines(self) -> list[Mapping[str, str]]:
        """Return its log, one mapping per line."""
        return [json.loads(line) for line in self.output_text().splitlines() if line.startswith("{")]
