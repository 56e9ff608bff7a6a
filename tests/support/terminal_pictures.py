# SPDX-License-Identifier: Apache-2.0
"""Draws terminals with real output, in ``docs/pictures``: ``python -m support.terminal_pictures``.

``demo.svg`` is the output of ``make demo``, ``kubectl.svg`` that of ``kubectl get mailp`` for three
resources on a real API server, whose controllers and nodes are played as in ``tests/kubernetes``.  Without
``kube-apiserver`` and ``kubectl``, the second picture is left as it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from support.kube_cluster import Operator, real_cluster
from support.kube_server import ABSENT, programs
from support.kube_world import Addresses, World
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import Kubectl, find_kubectl

ROOT: Final = Path(__file__).parents[2]
PICTURES: Final = ROOT / "docs/pictures"
DEMO: Final = "deploy/examples/demo.yaml"
END: Final = "Count the logins"
"""The line of the demo before which the picture ends."""
_CHARACTER, _LINE, _EDGE, _BAR = 8.43, 19, 16, 30


def terminal(title: str, lines: Sequence[str]) -> str:
    """Return a picture of a terminal, as SVG.

    Args:
        title: What the picture shows, for the bar and for screen readers.
        lines: The text; a line that begins with ``$`` is a command.
    """
    width = round(max(map(len, lines)) * _CHARACTER) + 2 * _EDGE
    height = len(lines) * _LINE + _BAR + 2 * _EDGE
    rows = "\n".join(
        f'<text x="{_EDGE}" y="{_BAR + _EDGE + 13 + number * _LINE}"{_color(line)}>{escape(line)}</text>'
        for number, line in enumerate(lines)
        if line
    )
    dots = "".join(
        f'<circle cx="{18 + 18 * number}" cy="{_BAR // 2}" r="5" fill="#6e7681"/>' for number in range(3)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>{dots}\n'
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="14" '
        f'fill="#c9d1d9" xml:space="preserve">\n{rows}\n</g>\n</svg>\n'
    )


def _color(line: str) -> str:
    if line.startswith("$"):
        return ' fill="#79c0ff"'
    return ' fill="#7ee787"' if line.startswith("  ok ") else ""


def demo_lines() -> list[str]:
    """Run the demo, and return what it prints until its commands."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mailproxy_operator", "local", "-f", DEMO, "--demo"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        lines: list[str] = []
        for line in process.stdout or ():
            if line.startswith(END):
                break
            lines.append(line.rstrip())
        process.send_signal(signal.SIGTERM)
        process.communicate()
    return ["$ make demo", *lines]


def kubectl_lines(folder: Path) -> list[str]:
    """Return the output of kubectl for a ready resource, one with a missing Secret, and an invalid one."""
    found, program = programs(), find_kubectl(folder)
    if found is None or program is None:
        raise LookupError(ABSENT if found is None else NO_KUBECTL)
    with real_cluster(found, folder) as cluster:
        kubeconfig = cluster.kubeconfig("operator", cluster.operator_token())
        operator = Operator(cluster, "operator", kubeconfig).started()
        world = World(cluster, operator, Addresses())
        world.namespace = "mail"
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mail"}}
        assert cluster.api.create(namespace).checked_body
        try:
            _fill(world)
            kubectl = Kubectl(program, cluster.kubeconfig("admin", cluster.api.user.token))
            text = kubectl("-n", "mail", "get", "mailp")
            reason = "jsonpath={.status.conditions[?(@.type=='Ready')].message}"
            message = kubectl("-n", "mail", "get", "mailp", "submission", "-o", reason)
        finally:
            world.close()
            operator.stop()
    shown = '{.status.conditions[?(@.type=="Ready")].message}'
    return [
        "$ kubectl -n mail get mailp", *text.rstrip().splitlines(), "",
        f"$ kubectl -n mail get mailp submission -o jsonpath='{shown}'", *_wrapped(message, 96),
    ]  # fmt: skip


def _fill(world: World) -> None:
    world.put("edge", replicas=2)
    world.until(lambda: world.find("Deployment", "edge"), "a Deployment")
    world.settle("edge")
    tls: dict[str, Any] = {
        "authHttp": "http://auth.mail.svc:9000/auth", "starttls": "Enabled",
        "sslCertificate": [{"secretName": "mail-tls"}],
    }  # fmt: skip
    world.put("submission", mail=tls, replicas=1)
    world.until(lambda: world.find("Deployment", "submission"), "a Deployment")
    pod = "submission-6d9c7-x2x"
    world.make_pod(pod, world.found("Deployment", "submission"))
    waiting = {"name": "mailproxy", "image": "m", "imageID": "", "ready": False, "restartCount": 0}
    stuck = {**waiting, "state": {"waiting": {"reason": "ContainerCreating"}}}
    world.set_pod_status(pod, {"phase": "Pending", "containerStatuses": [stuck]})
    world.api.post("/api/v1/namespaces/mail/events", _mount_failure(pod)).checked_body  # noqa: B018
    world.put("internal", service={"ipFamilyPolicy": "RequireDualStack"})
    world.until(lambda: world.condition("Ready", "edge")[0] == "True", "a ready resource")
    world.until(lambda: world.condition("Ready", "internal")[1] == "InvalidSpec", "an invalid resource")
    world.until(lambda: world.condition("Ready", "submission")[1] == "SecretNotFound", "a missing Secret")


def _mount_failure(pod: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{pod}.1", "namespace": "mail"},
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "refs" : secret "mail-tls" not found',
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": pod, "namespace": "mail"},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def main() -> None:
    """Draw the pictures."""
    title = "make demo: three logins, and the addresses of the proxy"
    (PICTURES / "demo.svg").write_text(terminal(title, demo_lines()))
    with tempfile.TemporaryDirectory(prefix="mailproxy-picture-") as folder:
        try:
            lines = kubectl_lines(Path(folder))
        except LookupError as missing:
            sys.stderr.write(f"kubectl.svg: {missing}\n")
            return
    title = "kubectl get mailp: the status of three resources, and the message of one"
    (PICTURES / "kubectl.svg").write_text(terminal(title, lines))


if __name__ == "__main__":
    main()
