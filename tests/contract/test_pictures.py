# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documentation: drawn from their sources, readable, shown and described on a page."""

from __future__ import annotations

import copy
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

ROOT: Final = Path(__file__).parents[2]
PICTURES: Final = ROOT / "docs/pictures"
sys.path.insert(0, str(ROOT / "docs/diagrams"))

from mailproxy_diagrams import canvas  # noqa: E402  its folder is not installed
from mailproxy_diagrams.diagram import draw, drawings, sources  # noqa: E402

DRAWINGS: Final = drawings()
SOURCES: Final = sources()
OTHERS: Final = {
    "dashboard-operator.svg": "make pictures",
    "dashboard-overview.svg": "make pictures",
    "dashboard-proxies.svg": "make pictures",
    "icon.svg": "of the chart",
}
"""Pictures without a source in docs/diagrams."""
SVG: Final = "{http://www.w3.org/2000/svg}"
SIZES: Final = {"title": 17.0, "head": 14.0, "text": 14.0, "code": 13.0, "note": 12.0}


@dataclass(frozen=True)
class Text:
    """A line of text and the place that it takes."""

    line: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Text) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def _texts(svg: str) -> list[Text]:
    found = []
    for one in ElementTree.fromstring(svg).iter(f"{SVG}text"):
        kind, line = one.attrib["class"].split()[0], one.text or ""
        size, x, y = SIZES[kind], float(one.attrib["x"]), float(one.attrib["y"])
        width = canvas.width_of(line, size, is_code=kind == "code")
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[one.attrib["text-anchor"]]
        found.append(Text(line, left, left + width, y - 0.75 * size, y + 0.2 * size))
    return found


def _pages() -> dict[str, str]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}


def test_every_picture_has_a_known_source() -> None:
    drawn = {path.name for path in DRAWINGS}
    assert {path.name for path in PICTURES.iterdir()} == drawn | OTHERS.keys()


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_diagram_is_drawn_from_its_source(path: Path) -> None:
    assert path.read_text("utf-8") == DRAWINGS[path], "run: make generate"


@pytest.mark.parametrize("path", sorted(PICTURES.iterdir()), ids=lambda path: path.stem)
def test_picture_is_shown_on_a_page(path: Path) -> None:
    chart = (ROOT / "charts/mailproxy-operator/Chart.yaml").read_text("utf-8")
    assert f"docs/pictures/{path.name}" in chart or any(
        f"pictures/{path.name})" in page for page in _pages().values()
    )


@pytest.mark.parametrize("name", SOURCES)
def test_page_describes_the_diagram_for_those_who_cannot_see_it(name: str) -> None:
    shown = [
        (page, alt)
        for page, text in _pages().items()
        for alt in re.findall(rf"!\[([^\]]*)\]\([^)]*pictures/{name}\.svg\)", text)
    ]
    assert shown
    for page, alt in shown:
        assert page == "README.md" or alt == SOURCES[name]["alt"]
        assert len(alt) > 40


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_diagram_has_title_and_description(path: Path) -> None:
    root = ElementTree.fromstring(DRAWINGS[path])
    assert root.attrib["role"] == "img"
    assert [one.text for one in root[:2]] == [SOURCES[path.stem]["title"], SOURCES[path.stem]["alt"]]


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_texts_of_a_diagram_are_inside_it_and_do_not_overlap(path: Path) -> None:
    root = ElementTree.fromstring(DRAWINGS[path])
    texts = _texts(DRAWINGS[path])
    assert len(texts) > 5
    for text in texts:
        assert text.left >= 0
        assert text.right <= float(root.attrib["width"])
        assert text.bottom <= float(root.attrib["height"])
    assert [(a.line, b.line) for a, b in itertools.combinations(texts, 2) if a.overlaps(b)] == []


@pytest.mark.parametrize("theme", ["_LIGHT", "_DARK"])
def test_texts_have_enough_contrast(theme: str) -> None:
    """At least 4.5, which WCAG 2.2 requires of small text (1.4.3)."""
    colours: dict[str, tuple[str, str]] = getattr(canvas, theme)
    for area in ("page", *canvas.STYLES):
        for text in colours["text"]:
            assert _contrast(text, colours[area][0]) >= 4.5, (area, text)


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_that_is_wider_than_its_bar_is_an_error() -> None:
    source = copy.deepcopy(SOURCES["tls-modes"])
    source["sections"][0]["lanes"][0]["bars"][0]["text"] = "a text that does not fit into the bar"
    with pytest.raises(ValueError, match="wider than its bar"):
        draw(source)


def test_labels_that_overlap_are_an_error() -> None:
    source = copy.deepcopy(SOURCES["reload"])
    source["sections"][1]["ticks"][1]["at"] = 0.35
    with pytest.raises(ValueError, match="overlaps"):
        draw(source)


def test_arrow_between_boxes_without_a_common_row_or_column_is_an_error() -> None:
    source = copy.deepcopy(SOURCES["overview"])
    source["arrows"].append({"from": "clients", "to": "operator"})
    with pytest.raises(ValueError, match="no common row or column"):
        draw(source)
