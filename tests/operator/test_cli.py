# SPDX-License-Identifier: Apache-2.0
"""The command: its output, and its exit codes."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mailproxy_operator.cli import main

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "examples" / "demo.yaml"


def test_render_prints_the_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(DEMO), "--image", "registry.example/proxy:1"]) == 0
    rendered = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [one["kind"] for one in rendered] == [
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
    ]
    assert rendered[-1]["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/proxy:1"


def test_render_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DEMO.read_bytes())))
    assert main(["render", "-f", "-"]) == 0
    assert "kind: Deployment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: Service\n", "holds no resource of kind MailProxy"),
        (
            DEMO.read_text().replace("serverName: localhost", "authHttpTimeout: soon"),
            "spec.mail.authHttpTimeout",
        ),
        ("kind: [", ":"),
    ],
)
def test_render_reports_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text(text)
    assert main(["render", "-f", str(file)]) == 1
    assert expected in capsys.readouterr().err


def test_missing_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(tmp_path / "nothing")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["render"], ["render", "-f", "x", "--kube-version", "new"], ["fly"]],
)
def test_wrong_usage_has_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_local_without_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local"]) == 2
    assert "--demo" in capsys.readouterr().err


def test_local_refuses_invalid_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("kind: MailProxy\n")
    assert main(["local", "-f", str(file)]) == 1
    assert "metadata.name" in capsys.readouterr().err


def test_local_without_its_libraries_reports_how_to_install_them() -> None:
    source = (
        "import sys; sys.modules['aiohttp'] = None; from mailproxy_operator.cli import main;"
        "sys.exit(main(['local', '--demo']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        "mailproxy-operator: this command needs the library aiohttp, which the extra 'demo' installs: "
        "pip install --editable '.[demo]'\n"
    )


def test_local_and_render_import_neither_kopf_nor_kubernetes() -> None:
    source = (
        "import sys; import mailproxy_operator.cli, mailproxy_demo.local,"
        "mailproxy_demo.demo, mailproxy_operator.render.manifest_text;"
        "sys.exit(bool({'kopf', 'kubernetes'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", source], env=environment, check=False).returncode == 0


def test_version_option_prints_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("mailproxy-operator ")


@pytest.mark.parametrize(
    ("is_terminal", "arguments", "wanted"),
    [(True, [], "text"), (False, [], "json"), (True, ["--log-format", "json"], "json")],
)
def test_logs_are_text_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, arguments: list[str], wanted: str
) -> None:
    found: list[str] = []

    def run(options: argparse.Namespace) -> int:
        found.append(options.log_format)
        return 0

    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("mailproxy_operator.command.run_command", run)
    assert main(["run", *arguments]) == 0
    assert found == [wanted]


@pytest.mark.parametrize("arguments", [["crd"], ["render", "-f", str(DEMO)]])
def test_full_disk_is_reported_without_traceback(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-m", "mailproxy_operator", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert found.returncode == 1
    assert found.stderr == "mailproxy-operator: standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["render", "local"])
def test_binary_file_is_reported_without_traceback(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00spec")
    assert main([command, "-f", str(file)]) == 1
    assert str(file) in capsys.readouterr().err


def test_render_accepts_file_as_positional_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(DEMO)]) == 0
    with_option = capsys.readouterr().out
    assert main(["render", str(DEMO)]) == 0
    assert capsys.readouterr().out == with_option
    for wrong in (["render"], ["render", str(DEMO), "-f", str(DEMO)]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
