# SPDX-License-Identifier: Apache-2.0
"""The diagrams: their sources, and the SVG files that are drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from mailproxy_diagrams.boxes import draw_boxes
from mailproxy_diagrams.canvas import Canvas
from mailproxy_diagrams.lanes import draw_lanes
from mailproxy_diagrams.sequence import draw_sequence

SOURCES: Final = Path(__file__).parents[1]
PICTURES: Final = SOURCES.parent / "pictures"

KINDS: Final[dict[str, Callable[[Canvas, dict[str, Any]], None]]] = {
    "sequence": draw_sequence,
    "boxes": draw_boxes,
    "lanes": draw_lanes,
}


def sources() -> dict[str, dict[str, Any]]:
    """Return the content of every source by the name of its diagram."""
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(SOURCES.glob("*.yaml"))}


def draw(source: dict[str, Any]) -> str:
    """Return a diagram as SVG.

    Args:
        source: ``kind``, ``title`` (shown above the diagram), ``alt`` (its content in one sentence), and
            what its kind needs.

    Raises:
        ValueError: A text does not fit where it belongs.
    """
    canvas = Canvas(source["title"], source["alt"])
    KINDS[source["kind"]](canvas, source)
    return canvas.svg()


def drawings() -> dict[Path, str]:
    """Return every SVG by its path."""
    return {PICTURES / f"{name}.svg": draw(source) for name, source in sources().items()}
