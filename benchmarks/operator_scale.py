# SPDX-License-Identifier: Apache-2.0
"""``PYTHONPATH=tests python -m benchmarks.operator_scale``: the operator with many resources, and idle.

Needs kube-apiserver and etcd, in $KUBEBUILDER_ASSETS or /usr/local/kubebuilder/bin.  There are no
controllers: every Deployment is reported as rolled out, with no pods wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from support.kube_cluster import USER, Cluster, Operator, real_cluster
from support.kube_server import Request, programs
from support.kube_world import Addresses, World
from support.operator_bodies import body
from support.servers.programs import Ports, Running

THREADS = 8
TIMEOUT_SECONDS = 900.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process has used: seconds of CPU, MiB now and at most."""

    cpu: float
    rss: float
    peak: float


def usage(pid: int) -> Usage:
    """Read what a process has used."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = {name: value for name, _, value in (line.partition(":") for line in lines)}
    kib = {name: int(memory[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}
    return Usage((int(ticks[11]) + int(ticks[12])) / _TICKS, kib["VmRSS"], kib["VmHWM"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _options(argv)
    found = programs()
    if found is None:
        print("not installed: kube-apiserver and etcd", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        _show("proxy", start_of_proxy(Path(folder)))
        with real_cluster(found, Path(folder)) as cluster:
            _show("operator, start", start_of_operator(cluster))
            operator = Operator(cluster, "bench", kubeconfig(cluster), [f"--resync={options.resync}"])
            try:
                group(cluster, operator.started(), options)
            finally:
                operator.stop()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator_scale", description=__doc__)
    parser.add_argument("--resources", type=int, default=500, help="number of MailProxy resources")
    parser.add_argument("--resync", type=float, default=60.0, help="seconds; the operator's default is 600")
    parser.add_argument("--rest", type=float, default=120.0, help="seconds to measure while idle")
    return parser.parse_args(argv)


def kubeconfig(cluster: Cluster) -> Path:
    """Write a kubeconfig with the operator's rights."""
    return cluster.kubeconfig("bench", cluster.operator_token())


def _show(name: str, figures: dict[str, object]) -> None:
    print(f"{name}: {json.dumps(figures)}", flush=True)


def start_of_proxy(folder: Path) -> dict[str, object]:
    """Measure ``mailproxy run`` from its beginning until it is ready."""
    ports = Ports().take_all("mail", "admin")
    listener = {"address": "127.0.0.1", "port": ports["mail"]}
    manifest = folder / "proxy.yaml"
    servers = [{"name": "imap", "protocol": "imap", "listen": [listener]}]
    manifest.write_text(json.dumps(body(workers=1, servers=servers)))
    words = ["-m", "mailproxy", "run", "-f", str(manifest), f"--admin=127.0.0.1:{ports['admin']}"]
    begun = time.monotonic()
    running = Running([sys.executable, *words], output=folder / "proxy.log")
    try:
        return _started(running, lambda: _is_ready(ports["admin"]), begun, ["/readyz"])
    finally:
        running.stop()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def start_of_operator(cluster: Cluster) -> dict[str, object]:
    """Measure ``mailproxy-operator run`` from its beginning until it is ready, with no resource."""
    begun = time.monotonic()
    operator = Operator(cluster, "start", kubeconfig(cluster), [])
    try:
        return _started(operator, lambda: _answers_ready(operator), begun, ["/readyz"])
    finally:
        operator.stop()


def _answers_ready(operator: Operator) -> bool:
    try:
        return operator.admin.request("GET", "/readyz").status == 200
    except OSError:
        return False


def _started(
    running: Running, is_ready: Callable[[], bool], begun: float, until: list[str]
) -> dict[str, object]:
    while not is_ready():
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    pids = [running.pid, *_children(running.pid)]
    used = [usage(pid) for pid in pids]
    return {
        "until": until[0],
        "seconds": round(seconds, 2),
        "processes": len(pids),
        "rss_mib": round(sum(one.rss for one in used), 1),
        "cpu_seconds": round(sum(one.cpu for one in used), 2),
    }


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def group(cluster: Cluster, operator: Operator, options: argparse.Namespace) -> None:
    """Measure many resources, from nothing until all have settled, and then while idle."""
    world = World(cluster, operator, Addresses())
    names = [f"edge-{number}" for number in range(options.resources)]
    before, begun = usage(operator.pid), time.monotonic()
    with ThreadPoolExecutor(THREADS) as hands:
        list(hands.map(lambda name: world.put(name, replicas=0), names))
        created = time.monotonic() - begun
        list(hands.map(lambda name: _roll_out(world, name), names))
    _until_settled(world, names)
    settled, after = time.monotonic() - begun, usage(operator.pid)
    asked = [one for one in _asked(cluster) if one.verb != "watch"]
    _show(
        "settled",
        {
            "resources": options.resources,
            "created_after_s": round(created, 1),
            "settled_after_s": round(settled, 1),
            "requests_each": round(len(asked) / options.resources, 1),
            "by_verb_each": _each(Counter(one.verb for one in asked), options.resources),
            "by_resource_each": _each(
                Counter(f"{one.verb} {one.resource}" for one in asked), options.resources
            ),
            "cpu_s": round(after.cpu - before.cpu, 1),
            "peak_rss_mib": round(after.peak, 1),
        },
    )
    _rest(cluster, operator, options)


def _roll_out(world: World, name: str) -> None:
    world.until(lambda: world.find("Deployment", name) is not None, name, timeout=TIMEOUT_SECONDS)
    world.report(world.found("Deployment", name), 0)


def _until_settled(world: World, names: Sequence[str]) -> None:
    waiting = list(names)

    def all_are() -> bool:
        while waiting and world.condition("Reconciling", waiting[-1]) == ("False", "Settled"):
            waiting.pop()
        return not waiting

    world.until(all_are, "all to settle", timeout=TIMEOUT_SECONDS)


def _asked(cluster: Cluster) -> list[Request]:
    if cluster.server is None:
        raise ValueError("only a real API server notes who asked")
    return cluster.server.requests(USER)


def _each(counted: Counter[str], count: int) -> dict[str, float]:
    return {
        name: round(number / count, 2) for name, number in counted.most_common() if number / count >= 0.05
    }


def _rest(cluster: Cluster, operator: Operator, options: argparse.Namespace) -> None:
    time.sleep(min(options.resync, 60.0) + 10)
    asked, used = len(_asked(cluster)), usage(operator.pid)
    time.sleep(options.rest)
    later, then = _asked(cluster)[asked:], usage(operator.pid)
    _show(
        "at rest",
        {
            "seconds": options.rest,
            "resync_s": options.resync,
            "requests": len(later),
            "by_resource": dict(Counter(f"{one.verb} {one.resource}" for one in later).most_common()),
            "cpu_s": round(then.cpu - used.cpu, 2),
            "rss_mib": round(then.rss, 1),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
