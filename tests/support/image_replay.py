# SPDX-License-Identifier: Apache-2.0
"""Does what a Dockerfile says without a container engine: stages as layers over this machine's own files.

A stage is an overlay mounted in a mount namespace of its own, into which each
RUN changes its root; so every path is the one that the Dockerfile names, and
nothing of this machine is written to.  The machine's Python stands in for the
base image's.
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
_HANDED_ON: Final = ("PIP_", "SSL_", "REQUESTS_", "HTTP_", "HTTPS_", "NO_PROXY", "http", "no_proxy")
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
    """Tell whether this machine lets us mount an overlay, for which we must be root."""
    replay = Replay(Dockerfile({}, {"probe": Stage("probe", "")}), folder, folder)
    return subprocess.run(replay.inside("probe", ["true"]), capture_output=True, check=False).returncode == 0


class Replay:
    """Builds stages.

    Args:
        dockerfile: What to do.
        context: What COPY copies from.
        folder: Where the layers go.
    """

    def __init__(self, dockerfile: Dockerfile, context: Path, folder: Path) -> None:
        self._dockerfile = dockerfile
        self._context = context
        self._folder = folder
        self._built: set[str] = set()
        self.environments: dict[str, dict[str, str]] = {}

    def layer(self, stage: str) -> Path:
        """Give the folder of what a stage adds to what it begins with."""
        layer = self._folder / stage / "layer"
        for made in (layer, self._folder / stage / "work", self._folder / stage / "root"):
            made.mkdir(parents=True, exist_ok=True)
        return layer

    def build(self, name: str) -> None:
        """Build a stage, and before it those it needs."""
        if name in self._built:
            return
        stage = self._dockerfile.stages[name]
        if stage.base in self._dockerfile.stages:
            self.build(stage.base)
            environment = dict(self.environments[stage.base])
            # A copy, for one layer of an overlay may not lie within another.
            shutil.copytree(self.layer(stage.base), self.layer(name), symlinks=True, dirs_exist_ok=True)
        else:
            environment = {"PATH": _PATH, "PWD": "/"}
            self._give_python(name)
        self.environments[name] = environment
        for instruction in stage.instructions:
            self._do(name, instruction, environment)
        self._built.add(name)

    def _give_python(self, stage: str) -> None:
        """Have ``python`` mean this machine's, for everybody, wherever that is installed."""
        python = Path(os.path.realpath(sys.executable))
        for parent in reversed(python.parents[:-1]):
            (self.layer(stage) / str(parent).lstrip("/")).mkdir(mode=0o755, exist_ok=True)
        folder = self.layer(stage) / "usr/local/bin"
        folder.mkdir(parents=True, exist_ok=True)
        # No link: what is linked would look for its library beside the link.
        (folder / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (folder / "python").chmod(0o755)

    def _do(self, name: str, instruction: Instruction, environment: dict[str, str]) -> None:
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
        given = {key: value for key, value in os.environ.items() if key.startswith(_HANDED_ON)}
        done = subprocess.run(
            self.inside(name, ["/bin/sh", "-ec", script]),
            # A home only here: whether a running image gets one is up to what runs it.
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
        self, name: str, command: Sequence[str], *, read_only: bool = False, alone: bool = False
    ) -> list[str]:
        """Give the command that runs another within a stage.

        Args:
            name: The stage.
            command: What to run.
            read_only: Nothing but ``/tmp`` can be written to, and the user is 65532.
            alone: Without a network but a loopback of its own.
        """
        folder = self._folder / name
        overlay = f"lowerdir=/,upperdir={self.layer(name)},workdir={folder / 'work'}"
        steps = [
            f"cd {shlex.quote(str(folder))}",
            f"mount -t overlay overlay -o {shlex.quote(overlay)} root",
            "mount --rbind /dev root/dev && mount --rbind /proc root/proc",
        ]
        if alone:
            steps.append("ip link set lo up")
        become: list[str] = []
        if read_only:
            steps.append("mount -o remount,ro root && mount -t tmpfs -o mode=1777 tmpfs root/tmp")
            become = list(_BECOME_NOBODY)
        steps.append('exec chroot root "$@"')
        net = ["--net"] if alone else []
        return ["unshare", "--mount", *net, "sh", "-ec", " && ".join(steps), "sh", *become, *command]
