# SPDX-License-Identifier: Apache-2.0
"""Lanes of bars from left to right: what happens to several things during the same time."""

from __future__ import annotations

from typing import Any, Final

from mailproxy_diagrams.canvas import LINE, MARGIN, NOTE_SIZE, SIZE, TITLE_HEIGHT, Canvas, width_of

_GAP: Final = 10.0
_SECTION_GAP: Final = 26.0
_TICK_HEIGHT: Final = 24.0

Source = dict[str, Any]


def draw_lanes(canvas: Canvas, source: Source) -> None:
    """Draw the sections below each other.

    Args:
        canvas: Where to draw.
        source: ``width`` of the bars' area in pixels, ``sections`` (``title``, ``ticks``: ``at`` and
            ``text``, ``lanes``: ``name``, ``note`` and ``bars``: ``from``, ``to``, ``text``, ``style``), and
            ``legend`` (style: text). Positions are shares of the width.

    Raises:
        ValueError: A text is wider than its bar, or two labels overlap.
    """
    lanes = [lane for section in source["sections"] for lane in section["lanes"]]
    left = MARGIN + max(_name_width(lane) for lane in lanes) + 16
    y = MARGIN + TITLE_HEIGHT
    for section in source["sections"]:
        y = _section(canvas, section, left, source["width"], y) + _SECTION_GAP
    _legend(canvas, source.get("legend", {}), y - _SECTION_GAP + 20)


def _name_width(lane: Source) -> float:
    return max(width_of(lane["name"]), *(width_of(one, NOTE_SIZE) for one in _lines(lane.get("note", ""))), 0)


def _lines(text: str) -> list[str]:
    return text.splitlines() or [""]


def _section(canvas: Canvas, section: Source, left: float, width: float, y: float) -> float:
    """Draw one section; return where it ends."""
    if section.get("title"):
        canvas.text(MARGIN, y + 14, section["title"], kind="head")
    ticks = section.get("ticks", [])
    _check_ticks(ticks, width, width_of(section.get("title", "")) - (left - MARGIN))
    top = y + (_TICK_HEIGHT if ticks or section.get("title") else 0)
    bottom = top + sum(_lane_height(lane) + _GAP for lane in section["lanes"])
    for tick in ticks:
        x = left + tick["at"] * width
        canvas.text(x, y + 14, tick["text"], kind="note", anchor=tick.get("anchor", "middle"))
        canvas.rule(x, y + 20, x, bottom - _GAP + 4)
    for lane in section["lanes"]:
        _lane(canvas, lane, left, width, top)
        top += _lane_height(lane) + _GAP
    return bottom - _GAP


def _check_ticks(ticks: list[Source], width: float, end: float) -> None:
    """Raise an error if a label overlaps the one before it, or the section's title, which ends at ``end``."""
    for tick in ticks:
        half = width_of(tick["text"], NOTE_SIZE) / 2
        shift = {"start": 0.0, "middle": half, "end": 2 * half}[tick.get("anchor", "middle")]
        begin = tick["at"] * width - shift
        if begin < end:
            raise ValueError(f"the label overlaps the one before it: {tick['text']}")
        end = begin + 2 * half + 8


def _lane_height(lane: Source) -> float:
    lines = max(len(_lines(bar["text"])) for bar in lane["bars"])
    return max(lines * LINE + 16, 22 + 16 * len(_lines(lane.get("note", ""))))


def _lane(canvas: Canvas, lane: Source, left: float, width: float, y: float) -> None:
    height = _lane_height(lane)
    notes = lane.get("note", "").splitlines()
    first = y + height / 2 + 5 - 8 * len(notes)
    canvas.text(MARGIN, first, lane["name"], kind="head")
    for index, line in enumerate(notes):
        canvas.text(MARGIN, first + 16 * (index + 1), line, kind="note")
    for bar in lane["bars"]:
        x, w = left + bar["from"] * width, (bar["to"] - bar["from"]) * width
        canvas.area(x, y, w, height, bar["style"])
        lines = _lines(bar["text"])
        for index, line in enumerate(lines):
            if width_of(line, NOTE_SIZE) + 12 > w:
                raise ValueError(f"the text is wider than its bar of {w:.0f} pixels: {line}")
            canvas.text(
                x + w / 2,
                y + height / 2 + 5 + LINE * (index - (len(lines) - 1) / 2),
                line,
                kind="note" if bar.get("small", True) else "text",
                anchor="middle",
            )


def _legend(canvas: Canvas, legend: dict[str, str], y: float) -> None:
    x = MARGIN
    for style, text in legend.items():
        canvas.area(x, y, 22, 14, style)
        canvas.text(x + 30, y + 12, text, kind="note")
        x += 30 + width_of(text, SIZE) + 14
