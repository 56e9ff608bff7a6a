# SPDX-License-Identifier: Apache-2.0
"""Runs the cluster in namespaces of its own: ``python -m support.process_node FOLDER ASSETS``.

The process must be started in new network, mount and process namespaces; ``start.py`` does it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from support.kube_api import Api
from support.kube_server import Programs, kube_server
from support.process_node.commands import run
from support.process_node.network import API_NAMES, API_SERVICE, NODE_ADDRESS, Network
from support.process_node.node import Node
from support.process_node.start import CONTEXT, CONTROLLER_MANAGER, KUBECONFIG, SCHEDULER
from support.servers.programs import Running, eventually


def _write_kubeconfig(folder: Path, url: str, token: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": CONTEXT, "cluster": {"server": url, "certificate-authority": str(folder / "ca.crt")}}
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": "admin"}}],
        "current-context": CONTEXT,
    }
    path = folder / "admin.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def _controllers(folder: Path, assets: Path, kubeconfig: Path) -> list[Running]:
    common = [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    manager = [
        str(assets / CONTROLLER_MANAGER),
        *common,
        f"--service-account-private-key-file={folder / 'accounts.key'}",
        f"--root-ca-file={folder / 'ca.crt'}",
        "--use-service-account-credentials=false",
    ]
    return [
        Running(manager, output=folder / "controller-manager.log"),
        Running([str(assets / SCHEDULER), *common], output=folder / "scheduler.log"),
    ]


def main() -> int:
    folder, assets = Path(sys.argv[1]), Path(sys.argv[2])
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    found = Programs(assets / "etcd", assets / "kube-apiserver")
    network = Network()
    with kube_server(found, folder, [NODE_ADDRESS, API_SERVICE, *API_NAMES]) as server:
        kubeconfig = _write_kubeconfig(folder, server.url, server.admin.user.token)
        programs = _controllers(folder, assets, kubeconfig)
        api: Api = server.admin
        eventually(lambda: api.find("Namespace", "", "kube-node-lease"), "the namespace of leases")
        version = str(api.get("/version").checked_body["gitVersion"])
        try:
            node = Node(api, folder, network, version)
            shutil.copy(kubeconfig, folder / KUBECONFIG)  # what start.py waits for
            node.run()
        finally:
            for one in programs:
                one.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
