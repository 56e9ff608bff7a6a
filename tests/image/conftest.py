# SPDX-License-Identifier: Apache-2.0
"""The images, built without a container engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dockerfile import Dockerfile
from support.image_replay import Replay, is_possible
from support.needs import Needs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dockerfile() -> Dockerfile:
    return Dockerfile.read(ROOT / "Dockerfile")


@pytest.fixture(scope="session")
def replay(needs: Needs, dockerfile: Dockerfile) -> Iterator[Replay]:
    """Both images.  Their layers are large and are removed at once, not with pytest's own folders."""
    needs("ip")
    folder = Path(tempfile.mkdtemp(prefix="mailproxy-image-"))
    folder.chmod(0o755)
    try:
        if not is_possible(folder / "probe"):
            pytest.skip("needs root, and overlay mounts in a namespace of its own")
        made = Replay(dockerfile, ROOT, folder)
        made.build("proxy")
        made.build("operator")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
