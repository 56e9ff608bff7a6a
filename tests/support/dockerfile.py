# SPDX-License-Identifier: Apache-2.0
"""Reads a Dockerfile: stages, and instructions with their continuation lines joined."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword and its arguments."""

    word: str
    rest: str

    def words(self) -> list[str]:
        """The arguments as a list: from JSON, or split like a shell."""
        text = self.rest.strip()
        if text.startswith("["):
            listed: list[str] = json.loads(text)
            return listed
        return shlex.split(text)


@dataclass
class Stage:
    """One stage: its base and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """All instructions with a keyword."""
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        """The last instruction with a keyword, which is the effective one."""
        return self.all(word)[-1]

    def pairs(self, word: str) -> dict[str, str]:
        """All ``NAME=value`` of ENV, LABEL or ARG."""
        found = [pair.partition("=") for one in self.all(word) for pair in one.words()]
        return {name: value for name, _, value in found}


@dataclass
class Dockerfile:
    """The arguments before the first stage, and the stages by name."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """Read a file."""
        found = cls({}, {})
        stage: Stage | None = None
        for one in _instructions(path.read_text(encoding="utf-8")):
            if one.word == "FROM":
                base, _, name = one.words()
                stage = found.stages[name] = Stage(name, base)
            elif stage is None:
                name, _, value = one.rest.partition("=")
                found.arguments[name] = value
            else:
                stage.instructions.append(one)
        return found


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    parts = [line.strip().partition(" ") for line in joined.splitlines()]
    return [Instruction(word, rest.strip()) for word, _, rest in parts]
