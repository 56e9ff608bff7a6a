# SPDX-License-Identifier: Apache-2.0
"""Starts the cluster in new network, mount and process namespaces, which end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.kube_server import ASSETS, USUAL_ASSETS
from support.needs import find_program
from support.servers.programs import Running

CONTEXT: Final = "mailproxy-processes"
KUBECONFIG: Final = "cluster.kubeconfig"
CONTROLLER_MANAGER: Final = "kube-controller-manager"
SCHEDULER: Final = "kube-scheduler"
_ASSETS: Final = ("etcd", "kube-apiserver", CONTROLLER_MANAGER, SCHEDULER)
_PROGRAMS: Final = ("unshare", "nsenter", "ip", "nft", "setpriv", "sysctl", "mount")
_TESTS: Final = Path(__file__).parents[2]


def assets_folder() -> Path:
    """Return the folder where the programs of Kubernetes are searched."""
    return Path(os.environ.get(ASSETS) or USUAL_ASSETS)


def missing() -> str:
    """Return why the cluster cannot be started on this machine; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, for network and mount namespaces"
    folder = assets_folder()
    absent = [name for name in _ASSETS if not os.access(folder / name, os.X_OK)]
    if absent:
        return f"needs {', '.join(absent)} in ${ASSETS} or {USUAL_ASSETS}"
    absent = [name for name in _PROGRAMS if find_program(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: util-linux, mount, iproute2, nftables, procps)"
    return ""


@dataclass(frozen=True)
class ProcessCluster:
    """The running cluster.

    Attributes:
        kubeconfig: A kubeconfig of a user with all rights.
        folder: The folder with logs of the cluster and of all containers.
        enter: The command that runs another command in the cluster's network.
    """

    kubeconfig: Path
    folder: Path
    enter: tuple[str, ...]


@contextmanager
def process_cluster(folder: Path) -> Iterator[ProcessCluster]:
    """Run the cluster until the context ends."""
    namespaces = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    # The cluster ends with this process, even if this is killed.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        *namespaces,
        sys.executable,
        "-m",
        "support.process_node",
    ]
    path = os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")])
    running = Running(
        [*command, str(folder), str(assets_folder())],
        output=folder / "node.log",
        env={"PYTHONPATH": path.rstrip(os.pathsep), "PYTHONUNBUFFERED": "1"},
    )
    try:
        kubeconfig = folder / KUBECONFIG
        running.eventually(kubeconfig.exists, "the cluster")
        yield ProcessCluster(kubeconfig, folder, ("nsenter", f"--net=/proc/{_child(running.pid)}/ns/net"))
    finally:
        if running.process.poll() is None:
            # The first process of its namespace: with it, the kernel ends all others.
            os.kill(_child(running.pid), signal.SIGKILL)
        running.stop()


def _child(pid: int) -> int:
    """Return the process that ``unshare`` has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return int(listed.stdout.split()[0])
