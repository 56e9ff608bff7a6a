# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of a Dockerfile without a container engine.

A stage is an overlay over the root of this machine, mounted in its own mount
namespace; each RUN uses it as its root.  So paths are those of the Dockerfile,
and no file of the machine is written.  The machine's Python takes the place of
the base image's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from support.dockerfile import Dockerfile, Instruction, Stage

SECONDS: Final = 600.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON: Final = ("PIP_", "SSL_", "REQUESTS_", "HTTP_", "HTTPS_", "NO_PROXY", "http", "no_proxy")
_BECOME_NOBODY: Final = (
    "setpriv",
    "--reuid=65532",
    "--regid=65532",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "--inh-caps=-all",
)
_IGNORED: Final = shutil.ignore_patterns("__pycache__", "*.pyc")


def is_possible(folder: Path) -> bool:
    """Whether an overlay can be mounted on this machine; this needs root."""
    replay = Replay(Dockerfile({}, {"probe": Stage("probe", "")}), folder, folder)
    return subprocess.run(replay.inside("probe", ["true"]), capture_output=True, check=False).returncode == 0


class Replay:
    """Builds stages.

    Args:
        dockerfile: The Dockerfile.
        context: The build context, the source of COPY.
        folder: The folder for the layers.
    """

    def __init__(self, dockerfile: Dockerfile, context: Path, folder: Path) -> None:
        self._dockerfile = dockerfile
        self._context = context
        self._folder = folder
        self._built: set[str] = set()
        self.environments: dict[str, dict[str, str]] = {}

    def layer(self, stage: str) -> Path:
        """Return the folder of the files that a stage adds to its base."""
        layer = self._folder / stage / "layer"
        for made in (layer, self._folder / stage / "work", self._folder / stage / "root"):
            made.mkdir(parents=True, exist_ok=True)
        return layer

    def build(self, name: str) -> None:
        """Build a stage, and the stages that it is based on."""
        if name in self._built:
            return
        stage = self._dockerfile.stages[name]
        if stage.base in self._dockerfile.stages:
            self.build(stage.base)
            environment = dict(self.environments[stage.base])
            # A copy, because a layer of an overlay must not be inside another.
            shutil.copytree(self.layer(stage.base), self.layer(name), symlinks=True, dirs_exist_ok=True)
        else:
            environment = {"PATH": _PATH, "PWD": "/"}
            self._install_python(name)
        self.environments[name] = environment
        for instruction in stage.instructions:
            self._execute(name, instruction, environment)
        self._built.add(name)

    def _install_python(self, stage: str) -> None:
        """Install a script ``python`` that runs this machine's Python, for all users."""
        python = Path(os.path.realpath(sys.executable))
        for parent in reversed(python.parents[:-1]):
            (self.layer(stage) / str(parent).lstrip("/")).mkdir(mode=0o755, exist_ok=True)
        folder = self.layer(stage) / "usr/local/bin"
        folder.mkdir(parents=True, exist_ok=True)
        # A script, not a link: a linked interpreter searches its library next to the link.
        (folder / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (folder / "python").chmod(0o755)

    def _execute(self, name: str, instruction: Instruction, environment: dict[str, str]) -> None:
        match instruction.word:
            case "RUN":
                self._run(name, instruction.rest, environment)
            case "COPY":
                self._copy(name, instruction.words(), environment["PWD"])
            case "ENV" | "ARG":
                for pair in instruction.words():
                    key, _, value = pair.partition("=")
                    environment[key] = value.replace("$PATH", environment["PATH"])
            case "WORKDIR":
                environment["PWD"] = instruction.rest
                (self.layer(name) / instruction.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _run(self, name: str, command: str, environment: Mapping[str, str]) -> None:
        command = re.sub(r"^--mount=\S+ +", "", command)  # a secret that is not given is no file
        script = f"cd {shlex.quote(environment['PWD'])} && {command}"
        given = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        done = subprocess.run(
            self.inside(name, ["/bin/sh", "-ec", script]),
            # HOME is set for RUN only: in a running image, the container engine sets it.
            env={**given, "HOME": "/root", **environment},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{name}: RUN {command}\n{done.stdout}{done.stderr}"

    def _copy(self, name: str, words: list[str], where: str) -> None:
        root = self._context
        if words[0].startswith("--from="):
            origin = words.pop(0).partition("=")[2]
            self.build(origin)
            root = self.layer(origin)
        *sources, target = words
        to = self.layer(name) / os.path.join(where, target).lstrip("/")
        for source in sources:
            found = root / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, to, symlinks=True, ignore=None if root != self._context else _IGNORED)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, to)

    def inside(
        self, name: str, command: Sequence[str], *, read_only: bool = False, without_network: bool = False
    ) -> list[str]:
        """Return the command that runs another command inside a stage.

        Args:
            name: The stage.
            command: The command to run.
            read_only: Mount the root read-only except ``/tmp``, and run as user 65532.
            without_network: Use a network namespace with loopback only.
        """
        folder = self._folder / name
        overlay = f"lowerdir=/,upperdir={self.layer(name)},workdir={folder / 'work'}"
        steps = [
            f"cd {shlex.quote(str(folder))}",
            f"mount -t overlay overlay -o {shlex.quote(overlay)} root",
            "mount --rbind /dev root/dev && mount --rbind /proc root/proc",
        ]
        if without_network:
            steps.append("ip link set lo up")
        become: list[str] = []
        if read_only:
            steps.append("mount -o remount,bind,ro root && mount -t tmpfs -o mode=1777 tmpfs root/tmp")
            become = list(_BECOME_NOBODY)
        steps.append('exec chroot root "$@"')
        net = ["--net"] if without_network else []
        return ["unshare", "--mount", *net, "sh", "-ec", " && ".join(steps), "sh", *become, *command]
