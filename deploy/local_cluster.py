#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs MailProxy into a cluster on this machine: ``make kind``.

It builds both images, loads them into a cluster of kind, k3d or minikube, installs the chart, and applies
the first proxy.  Everything is checked before anything is changed, and a second run changes only what is
different.  Every command names the context that was chosen, so that no other cluster is touched, whatever
``kubectl`` points to meanwhile.

Exit status: 0 installed, 1 something is missing or failed, 2 usage, 4 the answer to a question was no.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = "charts/mailproxy-operator"
RELEASE = "mailproxy-operator"
NAMESPACE = "mailproxy-system"
FIRST_PROXY = "deploy/examples/first-proxy.yaml"
EXAMPLE_SERVER = "imap.example.com:143"
MIN_MEMORY = 2 * 1024**3
"""Bytes that the container engine needs for a node, the operator and a proxy."""
WHERE = {
    "docker": "https://docs.docker.com/engine/install/",
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "k3d": "https://k3d.io/#installation",
    "minikube": "https://minikube.sigs.k8s.io/docs/start/",
    "helm": "https://helm.sh/docs/intro/install/",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
}


class CannotGoOnError(Exception):
    """Something is missing, or has failed; the message is for whoever ran ``make kind``."""


class DeclinedError(Exception):
    """The answer to a question was no."""


@dataclass(frozen=True)
class Tool:
    """A program that makes clusters: how it names contexts, lists clusters, makes one, and loads images."""

    name: str
    prefix: str
    list_command: tuple[str, ...]
    create: tuple[str, ...]
    hints: str

    def clusters(self) -> list[str]:
        """Give the names of its clusters; a tool without clusters may fail."""
        done = _run(*self.list_command)
        if self.name == "kind":
            return done.stdout.split() if not done.returncode else []
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return []
        listed = found.get("valid", []) if isinstance(found, dict) else found
        return [str(one.get("name") or one.get("Name")) for one in listed]

    def load(self, cluster: str, images: Sequence[str]) -> None:
        """Load images into all nodes of a cluster."""
        match self.name:
            case "kind":
                _do("kind", "load", "docker-image", *images, "--name", cluster)
            case "k3d":
                _do("k3d", "image", "import", *images, "--cluster", cluster)
            case _:
                for image in images:
                    _do("minikube", "--profile", cluster, "image", "load", image)


TOOLS = {
    "kind": Tool(
        "kind",
        "kind-",
        ("kind", "get", "clusters"),
        ("kind", "create", "cluster", "--name"),
        "If it is stopped: docker start {name}-control-plane\n"
        "If kubectl does not know it: kind export kubeconfig --name {name}",
    ),
    "k3d": Tool(
        "k3d",
        "k3d-",
        ("k3d", "cluster", "list", "--output", "json"),
        ("k3d", "cluster", "create"),
        "If it is stopped: k3d cluster start {name}\n"
        "If kubectl does not know it: k3d kubeconfig merge {name} --kubeconfig-merge-default",
    ),
    "minikube": Tool(
        "minikube",
        "",
        ("minikube", "profile", "list", "--output", "json"),
        ("minikube", "start", "--profile"),
        "If it is stopped, or kubectl does not know it: minikube start --profile {name}",
    ),
}


# ---- commands and questions -----------------------------------------------------------------------


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that changes nothing; its output is for this program."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - no shell


def _do(*command: str, stdin: str | None = None) -> None:
    """Run a command that changes something; its output is for the user.

    Raises:
        CannotGoOnError: It failed.
    """
    _say("+ " + " ".join(command))
    done = subprocess.run(command, cwd=ROOT, input=stdin, text=True, check=False)  # noqa: S603 - no shell
    if done.returncode:
        raise CannotGoOnError(
            f"{command[0]} failed with exit status {done.returncode}; its message is above."
        )


def _confirm(question: str, *, yes: bool, otherwise: str) -> None:
    """Ask; without a terminal, or a yes, nothing is changed.

    Raises:
        DeclinedError: The answer was no, or there is nobody to ask.
    """
    if yes:
        _say(f"{question} yes (YES=1)")
        return
    if not sys.stdin.isatty():
        raise DeclinedError(f"{question}\nThere is no terminal to answer on. {otherwise}")
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise DeclinedError(f"Nothing was changed. {otherwise}")


# ---- checks ---------------------------------------------------------------------------------------


def check_programs(tool: Tool) -> None:
    """Name every program that is missing, and where it is to be had."""
    missing = [name for name in ("docker", tool.name, "helm", "kubectl") if shutil.which(name) is None]
    if missing:
        lines = "".join(f"\n  {name}: {WHERE[name]}" for name in missing)
        raise CannotGoOnError(f"not installed, or not on the PATH:{lines}")


def check_engine(*, force: bool) -> None:
    """Check that Docker runs, and that it has enough memory."""
    done = _run("docker", "info", "--format", "{{.MemTotal}}")
    memory = done.stdout.strip()
    if done.returncode or not memory.isdecimal():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CannotGoOnError(
            f"Docker does not answer: {reason}\n"
            "Start it (systemctl start docker, or Docker Desktop); your user must be allowed to use it."
        )
    if 0 < int(memory) < MIN_MEMORY and not force:
        raise CannotGoOnError(
            f"Docker has {int(memory) >> 20} MiB of memory, and a cluster needs {MIN_MEMORY >> 20}.\n"
            "Give it more (Docker Desktop: Settings, Resources), or try all the same: FORCE=1."
        )


def choose_cluster(tool: Tool, wanted: str, *, yes: bool) -> str:
    """Give the name of the cluster to install into; ask where kubectl points to another."""
    clusters = tool.clusters()
    current = _run("kubectl", "config", "current-context").stdout.strip()
    target = current.removeprefix(tool.prefix) if current.startswith(tool.prefix) else ""
    if wanted:
        if wanted in clusters:
            return wanted
        return _create(tool, wanted, clusters, yes=yes)
    if target in clusters:
        return target
    if not clusters:
        return _create(tool, "mailproxy", clusters, yes=yes)
    other = f"kubectl points to '{current}'" if current else "kubectl points to no cluster"
    if len(clusters) > 1:
        names = ", ".join(clusters)
        raise CannotGoOnError(
            f"{other}, and {tool.name} has several clusters: choose one, CLUSTER_NAME=... of {names}."
        )
    [only] = clusters
    _confirm(
        f"{other}, which is no cluster of {tool.name}. Use the {tool.name} cluster '{only}' instead?",
        yes=yes,
        otherwise=f"To use it: CLUSTER_NAME={only}. The context of kubectl is not changed either way.",
    )
    return only


def _create(tool: Tool, name: str, clusters: Sequence[str], *, yes: bool) -> str:
    there = f"there are: {', '.join(clusters)}" if clusters else "there is none"
    command = [*tool.create, name]
    _confirm(
        f"No {tool.name} cluster '{name}' ({there}). Create it now?",
        yes=yes,
        otherwise=f"To create one: {' '.join(command)}",
    )
    _do(*command)
    return name


def check_cluster(tool: Tool, cluster: str, context: str) -> None:
    """Check that the API server answers."""
    done = _run("kubectl", "--context", context, "--request-timeout=15s", "get", "--raw", "/readyz")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        hints = tool.hints.format(name=cluster)
        raise CannotGoOnError(f"The cluster '{cluster}' does not answer: {reason}\n{hints}")


def check_release(context: str) -> None:
    """Check that no installation or upgrade was killed halfway: Helm would refuse to continue it."""
    helm = f"helm --kube-context {context} --namespace {NAMESPACE}"
    done = _run(*helm.split(), "status", RELEASE, "--output", "json")
    try:
        status = json.loads(done.stdout)["info"]["status"] if not done.returncode else ""
    except (ValueError, KeyError, TypeError):
        return  # helm upgrade reports what is wrong
    if status == "pending-install":
        repair = f"{helm} uninstall {RELEASE}"
    elif status.startswith("pending-"):
        repair = f"{helm} rollback {RELEASE}"
    else:
        return
    raise CannotGoOnError(
        f"The release {RELEASE} is in the state {status}: another installation is running, or was killed.\n"
        f"If none is running, repair the release, and run make kind again:\n  {repair}"
    )


# ---- steps ----------------------------------------------------------------------------------------


def build(images: Sequence[str], *, skip: bool) -> list[str]:
    """Build the images, and tag each by its content: pods are replaced if it has changed, and only then."""
    if not skip:
        _do(os.environ.get("MAKE", "make"), "images")
    tagged = []
    for image in images:
        done = _run("docker", "image", "inspect", "--format", "{{.Id}}", image)
        found = done.stdout.strip().removeprefix("sha256:")
        if done.returncode or not found:
            raise CannotGoOnError(f"Docker has no image {image}: make images makes it.")
        name = image.rpartition(":")[0]
        tagged.append(f"{name}:local-{found[:12]}")
        _do("docker", "tag", image, tagged[-1])
    return tagged


def install(context: str, proxy: str, operator: str) -> None:
    """Install or upgrade the chart with the images that were loaded."""
    values = []
    for key, image in (("image", operator), ("proxyImage", proxy)):
        repository, _, tag = image.rpartition(":")
        values += ["--set", f"{key}.repository={repository}", "--set", f"{key}.tag={tag}"]
    try:
        _do(
            *("helm", "upgrade", "--install", RELEASE, CHART, "--kube-context", context),
            *("--namespace", NAMESPACE, "--create-namespace", *values, "--wait", "--timeout", "5m"),
        )
    except CannotGoOnError as error:
        show = f"kubectl --context {context} -n {NAMESPACE}"
        raise CannotGoOnError(
            f"{error}\nIf the operator did not start, this shows why, such as too little memory:\n"
            f"  {show} describe pods\n  {show} get events"
        ) from None


def apply_first_proxy(context: str, mail_server: str) -> None:
    """Apply the first proxy, and wait until it is ready."""
    kubectl = ("kubectl", "--context", context)
    namespace = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mail"}})
    _do(*kubectl, "apply", "--server-side", "-f", "-", stdin=namespace)
    manifest = (ROOT / FIRST_PROXY).read_text(encoding="utf-8").replace(EXAMPLE_SERVER, mail_server)
    _do(*kubectl, "apply", "--server-side", "-f", "-", stdin=manifest)
    try:
        _do(*kubectl, "-n", "mail", "wait", "--for=condition=Ready", "mailp/first", "--timeout=3m")
    except CannotGoOnError:
        show = f"kubectl --context {context} -n mail"
        raise CannotGoOnError(
            "The first proxy did not become ready within three minutes. Why:\n"
            f"  {show} describe mailp first\n  {show} get pods,events"
        ) from None


def next_steps(cluster: str, context: str, mail_server: str, tool: Tool) -> str:
    """Tell what can be done now."""
    kubectl = f"kubectl --context {context}"
    lines = [
        "",
        f"MailProxy runs in the {tool.name} cluster '{cluster}' (context {context}).",
        "",
        "See it:",
        f"  {kubectl} -n mail get mailp",
        f"  {kubectl} -n mail get pods",
        f"  {kubectl} -n mail logs deployment/first",
    ]
    if mail_server == EXAMPLE_SERVER:
        lines += [
            "",
            f"It has no mail server yet. With yours: make kind CLUSTER={tool.name} MAIL_SERVER=HOST:143",
        ]
    else:
        lines += ["", f"Log in; the mail server is {mail_server}:"]
    delete = {"kind": "kind delete cluster --name", "k3d": "k3d cluster delete"}
    lines += [
        f"  {kubectl} -n mail port-forward service/first 1143:143 &",
        "  curl imap://127.0.0.1:1143/ --user YOU",
        "",
        "Next:",
        "  deploy/examples                  manifests with TLS, POP3, submission",
        "  deploy/examples/auth-service     an authentication service that checks passwords",
        f"  helm --kube-context {context} -n {NAMESPACE} test {RELEASE}",
        "",
        "Remove it, or the whole cluster:",
        f"  {kubectl} delete namespace mail",
        f"  helm --kube-context {context} -n {NAMESPACE} uninstall {RELEASE}",
        f"  {delete.get(tool.name, 'minikube delete --profile')} {cluster}",
    ]
    return "\n".join(lines)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "") not in {"", "0", "no"}


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make kind", description="Install MailProxy into a local cluster.")
    parser.add_argument("--tool", choices=list(TOOLS), default="kind", help="make kind CLUSTER=...")
    parser.add_argument(
        "--name", default="", help="of the cluster (CLUSTER_NAME=...); else the one kubectl points to"
    )
    parser.add_argument("--mail-server", default=EXAMPLE_SERVER, metavar="HOST:PORT", help="MAIL_SERVER=...")
    parser.add_argument("--proxy-image", required=True)
    parser.add_argument("--operator-image", required=True)
    options = parser.parse_args(arguments)
    host, _, port = options.mail_server.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"MAIL_SERVER={options.mail_server}: must be HOST:PORT")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, ask, build, load, install, apply, and tell what is next."""
    options = _arguments(arguments)
    tool, yes = TOOLS[options.tool], _is_on("YES")
    try:
        check_programs(tool)
        check_engine(force=_is_on("FORCE"))
        cluster = choose_cluster(tool, options.name, yes=yes)
        context = tool.prefix + cluster
        check_cluster(tool, cluster, context)
        check_release(context)
        images = build((options.proxy_image, options.operator_image), skip=_is_on("SKIP_BUILD"))
        tool.load(cluster, images)
        install(context, *images)
        apply_first_proxy(context, options.mail_server)
    except CannotGoOnError as error:
        sys.stderr.write(f"make kind: {error}\n")
        return 1
    except DeclinedError as error:
        sys.stderr.write(f"make kind: {error}\n")
        return 4
    except KeyboardInterrupt:
        sys.stderr.write("\nmake kind: interrupted; run it again, it goes on where it is needed\n")
        return 130
    _say(next_steps(cluster, context, options.mail_server, tool))
    return 0


if __name__ == "__main__":
    sys.exit(main())
