# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator run`` as a process: it connects to the API server, works, and exits on a signal."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_operator.api.kinds import DEPLOYMENT, LEASE
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.cli import argument_parser, main
from mailproxy_operator.command import JsonLines, settings_from
from mailproxy_operator.settings import DEFAULT_IMAGE
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import until


def kubeconfig(path: Path, url: str) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "secret"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path


ARGUMENTS = ("run", "--admin", "127.0.0.1:0", "--lease-namespace", "mail")
NAMELESS = """
import os, sys
from mailproxy_operator.cli import main
os.setreuid(54321, 0)  # a user without a name; files can be read as before
sys.exit(main(sys.argv[1:]))
"""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to run as a user without a name")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("-m", "mailproxy_operator"), id="named user"),
        pytest.param(("-c", NAMELESS), id="user without a name", marks=needs_root),
    ],
)
async def test_run_ends_with_exit_code_0_after_sigterm(tmp_path: Path, command: tuple[str, ...]) -> None:
    async with FakeKube() as kube:
        kube.put(body())
        named = {"USER", "LOGNAME", "LNAME", "USERNAME", "HOME"} if "-c" in command else set()
        environment = {
            **{name: value for name, value in os.environ.items() if name not in named},
            "PYTHONPATH": os.pathsep.join(sys.path),
            "KUBECONFIG": str(kubeconfig(tmp_path / "config", kube.url)),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, *ARGUMENTS, env=environment, stderr=asyncio.subprocess.PIPE
        )
        await until(lambda: kube.find(DEPLOYMENT, "edge") or process.returncode is not None)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, log = await process.communicate()
        assert kube.found(LEASE, "mailproxy-operator")["spec"]["holderIdentity"] == "", "released"
    assert process.returncode == 0, log.decode()
    assert kube.find(DEPLOYMENT, "edge")
    assert b"secret" not in log
    assert b"restarts it" not in log, log.decode()
    assert all(json.loads(line)["level"] in {"info", "warning"} for line in log.splitlines()), log.decode()


def test_run_without_credentials_prints_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main(["run", "--admin", "127.0.0.1:0"]) == 3
    assert "mailproxy-operator local --demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "environment", "name", "expected"),
    [
        ({}, {}, "image", DEFAULT_IMAGE),
        ({}, {"MAILPROXY_IMAGE": "a"}, "image", "a"),
        ({"image": "b"}, {"MAILPROXY_IMAGE": "a"}, "image", "b"),
        ({}, {"POD_NAMESPACE": "system"}, "lease_namespace", "system"),
        ({"lease_namespace": ""}, {"POD_NAMESPACE": "system"}, "lease_namespace", ""),
        ({"namespace": ["a", "b"]}, {}, "namespaces", ("a", "b")),
        ({"node_min_version": KubeVersion(1, 30)}, {}, "node_min_version", KubeVersion(1, 30)),
    ],
)
def test_arguments_override_environment(
    given: dict[str, Any], environment: dict[str, str], name: str, expected: object
) -> None:
    options = argparse.Namespace(**{**vars(argument_parser().parse_args(["run"])), **given})
    assert getattr(settings_from(options, environment), name) == expected


def test_log_line_is_json() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "a %s", ("b",), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["message"]) == ("error", "a b")
    assert "ValueError: no" in line["exception"]


@pytest.mark.parametrize("text", ["8080", "host:port", "host:99999"])
def test_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--admin", text])
    assert ended.value.code == 2
