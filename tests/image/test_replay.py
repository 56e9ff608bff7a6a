# SPDX-License-Identifier: Apache-2.0
"""The steps of the Dockerfile, run one by one: contents of the images, start of their programs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from mailproxy_operator.api.kinds import DEPLOYMENT
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned
from mailproxy_operator.settings import Platform
from support.dockerfile import Dockerfile
from support.image_replay import Replay
from support.operator_bodies import body, server
from support.operator_fakekube import FakeKube
from support.operator_running import until
from support.servers.programs import Ports

pytestmark = pytest.mark.interop

# Printed by a shell in the image: the user, whether the root is read-only, the health check, the exit code.
WATCH_THE_PROXY = """
id -u; id -g
touch /opt/mailproxy/x 2>/dev/null && echo "can be written to"
"$@" 2>/tmp/log & pid=$!
for i in $(seq 100); do
  if python -c "$CHECK" 2>/dev/null; then echo healthy; break; fi
  sleep 0.1
done
kill -TERM $pid; wait $pid; echo "ended $?"
cat /tmp/log >&2
"""


def _packages(replay: Replay, stage: str) -> set[str]:
    [site] = (replay.layer(stage) / "opt/mailproxy/lib").glob("python3.*/site-packages")
    return {path.name.partition("-")[0].lower() for path in site.iterdir() if path.suffix == ".dist-info"} | {
        path.name for path in site.iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }


def test_each_image_has_only_its_own_packages(replay: Replay) -> None:
    proxy, operator = _packages(replay, "proxy"), _packages(replay, "operator")
    assert {"mailproxy", "mailproxy_config", "aiodns"} <= proxy
    assert not {"kopf", "kubernetes", "mailproxy_operator"} & proxy
    assert {"mailproxy_operator", "mailproxy_config", "kopf", "kubernetes"} <= operator
    assert not {"aiodns", "crossplane"} & operator
    assert not {"mailproxy_demo", "twisted"} & (proxy | operator)
    for found in (proxy, operator):
        assert not {"pip", "setuptools", "hatchling", "pytest", "mypy"} & found


def test_operator_image_has_only_reached_modules_of_the_kubernetes_client(replay: Replay) -> None:
    [client] = (replay.layer("operator") / "opt/mailproxy/lib").glob("python3.*/site-packages/kubernetes")
    models = {path.name for path in client.glob("**/models/v*.py")}
    assert "v1_object_meta.py" in models, "kopf imports it"
    assert "v1_pod.py" not in models
    files = [path for path in client.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6, "of 119 MB with bytecode"
    assert not [path for path in files if path.name.endswith("_test.py")]


@pytest.mark.parametrize("stage", ["proxy", "operator"])
def test_images_have_no_build_files(replay: Replay, stage: str) -> None:
    layer = replay.layer(stage)
    added = {str(path.relative_to(layer)) for path in layer.glob("*")} | {
        str(path.relative_to(layer)) for path in layer.glob("opt/*")
    }
    stand_in = {"usr", *(str(parent).lstrip("/") for parent in Path(sys.executable).resolve().parents[-2:-1])}
    assert added - stand_in == {"opt", "opt/mailproxy"}
    programs = {path.name for path in (layer / "opt/mailproxy/bin").iterdir()}
    own = "mailproxy" if stage == "proxy" else "mailproxy-operator"
    assert {name for name in programs if not name.startswith("python")} == {own}


@pytest.mark.parametrize("stage", ["proxy", "operator"])
def test_bytecode_is_compiled_with_unchecked_hashes(replay: Replay, stage: str) -> None:
    [package] = (replay.layer(stage) / "opt/mailproxy/lib").glob("python3.*/site-packages/mailproxy_config")
    compiled = list((package / "__pycache__").glob("*.pyc"))
    assert len(compiled) == len(list(package.glob("*.py")))
    # The flags of PEP 552: hash-based, and the hash is not checked.
    assert {path.read_bytes()[4:8] for path in compiled} == {b"\1\0\0\0"}


@pytest.fixture
def configured(replay: Replay) -> Iterator[Path]:
    """The configuration as the operator mounts it."""
    resource = Resource.read(
        body(servers=[server("imap", "imap", 1143)], drain={"delay": "0s", "timeout": "1s"})
    )
    folder = replay.layer("proxy") / "etc/mailproxy"
    folder.mkdir(parents=True)
    (folder / "mailproxy.json").write_text(planned(resource, Platform()).document)
    yield folder
    (folder / "mailproxy.json").unlink()
    folder.rmdir()


@pytest.mark.usefixtures("configured")
def test_proxy_starts_unprivileged_with_read_only_root(replay: Replay, dockerfile: Dockerfile) -> None:
    stage = dockerfile.stages["proxy"]
    command = [*stage.last("ENTRYPOINT").words(), *stage.last("CMD").words()]
    check = stage.last("HEALTHCHECK").rest.partition(" CMD ")[2]
    environment = {**replay.environments["proxy"], "CHECK": json.loads(check)[2]}
    watched = ["sh", "-c", WATCH_THE_PROXY, "sh", *command]
    done = subprocess.run(
        replay.inside("proxy", watched, read_only=True, without_network=True),
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split("\n") == ["65532", "65532", "healthy", "ended 0", ""], done.stderr


async def test_operator_starts_unprivileged_with_read_only_root(
    replay: Replay, dockerfile: Dockerfile
) -> None:
    """With the arguments of the chart, and an emulated API server."""
    port = Ports().take()
    entry = dockerfile.stages["operator"].last("ENTRYPOINT").words()
    kubeconfig = replay.layer("operator") / "kubeconfig"
    async with FakeKube() as kube:
        kube.put(body())
        kubeconfig.write_text(json.dumps(_kubeconfig(kube.url)))
        command = [*entry, "run", f"--admin=:{port}", "--image=example.com/proxy:1", "--log-format=text"]
        process = await asyncio.create_subprocess_exec(
            *replay.inside("operator", command, read_only=True),
            env={**replay.environments["operator"], "KUBECONFIG": "/kubeconfig", "POD_NAMESPACE": "mail"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            deployment = await until(lambda: kube.find(DEPLOYMENT, "edge") or process.returncode is not None)
            assert process.returncode is None, (await process.communicate())[0].decode()
            [container] = deployment["spec"]["template"]["spec"]["containers"]
            assert container["image"] == "example.com/proxy:1"
            async with aiohttp.ClientSession() as session:
                for host in ("127.0.0.1", "[::1]"):
                    async with session.get(f"http://{host}:{port}/healthz") as response:
                        assert response.status == 200
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            output, _ = await asyncio.wait_for(process.communicate(), 20)
            kubeconfig.unlink()
        assert process.returncode == 0, output.decode()


def _kubeconfig(url: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "a", "user": {"token": "none"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
