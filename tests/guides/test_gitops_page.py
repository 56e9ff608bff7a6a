# SPDX-License-Identifier: Apache-2.0
"""docs/gitops.md: the health check in a Lua interpreter, and the command that renders a manifest."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.guides.argo_health import health
from support.guides.blocks import Object, Page
from support.needs import Needs
from support.servers.proxy import ROOT

PAGE: Final = Page("gitops.md")


def _proxy(spec: Object | None = None, **status: Any) -> Object:
    body = PAGE.object("proxy")
    body["metadata"]["generation"] = 3
    body["spec"].update(spec or {})
    if status:
        body["status"] = status
    return body


def _condition(kind: str, status: str, reason: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": f'"{reason}"\nand more'}


READY: Final = _condition("Ready", "True", "Ready")
UNREADY: Final = _condition("Ready", "False", "PodsNotReady")
STALLED: Final = _condition("Stalled", "True", "InvalidSpec")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(_proxy(), "Progressing", id="no-status"),
        pytest.param(_proxy(observedGeneration=2, conditions=[READY]), "Progressing", id="old-status"),
        pytest.param(_proxy(observedGeneration=3), "Progressing", id="no-conditions"),
        pytest.param(_proxy(observedGeneration=3, conditions=[UNREADY]), "Progressing", id="unready"),
        pytest.param(_proxy(observedGeneration=3, conditions=[READY]), "Healthy", id="ready"),
        pytest.param(_proxy(observedGeneration=3, conditions=[UNREADY, STALLED]), "Degraded", id="stalled"),
        pytest.param(
            _proxy({"paused": True}, observedGeneration=3, conditions=[READY]), "Suspended", id="paused"
        ),
    ],
)
def test_argo_cd_health(needs: Needs, body: Object, expected: str) -> None:
    status, message = health(needs("lua5.1"), body)
    assert status == expected, message
    assert message


def test_argo_cd_message_has_reason_and_message(needs: Needs) -> None:
    body = _proxy(observedGeneration=3, conditions=[UNREADY, STALLED])
    assert health(needs("lua5.1"), body)[1] == 'InvalidSpec: "InvalidSpec"\nand more'


def test_manifest_is_rendered_without_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "proxies").mkdir()
    (tmp_path / "proxies/edge.yaml").write_text(PAGE.block("proxy"))
    command, _, output = PAGE.block("render").strip().partition(" > ")
    program, *arguments = shlex.split(command)
    assert program == "mailproxy-operator"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'proxy'}:{ROOT / 'operator'}",
        "KUBECONFIG": "/nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mailproxy_operator", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert output == "rendered.yaml"
    kinds = [one["kind"] for one in yaml.safe_load_all(done.stdout) if one]
    assert {"ConfigMap", "Deployment", "Service"} <= set(kinds)
