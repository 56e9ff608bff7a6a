# SPDX-License-Identifier: Apache-2.0
"""Boxes on a grid, with arrows between boxes of the same row or column."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_diagrams.canvas import LINE, MARGIN, NOTE_SIZE, TITLE_HEIGHT, Canvas, width_of

_PAD: Final = 14.0
_MIN_GAP: Final = 40.0
_FRAME: Final = 14.0
_FRAME_TITLE: Final = 24.0

Source = dict[str, Any]


@dataclass
class _Rect:
    """The place of a box."""

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        return self.x + self.w

    @property
    def bottom(self) -> float:
        return self.y + self.h


def draw_boxes(canvas: Canvas, source: Source) -> None:
    """Draw the boxes, their frames and arrows.

    Args:
        canvas: Where to draw.
        source: ``boxes`` by name (``at``: column and row, ``rows`` if it is higher than one, ``name``,
            ``lines``, ``style``), ``groups`` (``name``, ``boxes``), ``arrows`` (``from``, ``to``, ``above``,
            ``below``, ``both``, ``of``: how many arrows the boxes share, ``label_at``: the place of the label
            of a vertical arrow, as a share of its length) and ``row_gap``.

    Raises:
        ValueError: An arrow connects boxes that share neither a row nor a column.
    """
    places = _places(source)
    for group in source.get("groups", []):
        _group(canvas, group, [places[name] for name in group["boxes"]])
    for name, box in source["boxes"].items():
        _box(canvas, box, places[name])
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for arrow in source["arrows"]:
        pair = (min(arrow["from"], arrow["to"]), max(arrow["from"], arrow["to"]))
        _arrow(canvas, arrow, source["boxes"], places, counts[pair])
        counts[pair] += 1


def _places(source: Source) -> dict[str, _Rect]:
    boxes: dict[str, Source] = source["boxes"]
    columns = 1 + max(box["at"][0] for box in boxes.values())
    rows = 1 + max(box["at"][1] for box in boxes.values())
    widths = [
        max([_width(box) for box in boxes.values() if box["at"][0] == column], default=0.0)
        for column in range(columns)
    ]
    heights = [
        max(
            [_height(box) for box in boxes.values() if box["at"][1] == row and box.get("rows", 1) == 1],
            default=0.0,
        )
        for row in range(rows)
    ]
    xs, ys = [MARGIN + _frame_space(source)], [MARGIN + TITLE_HEIGHT + _frame_top(source)]
    for column in range(columns - 1):
        xs.append(xs[-1] + widths[column] + _gap(source, column))
    for row in range(rows - 1):
        ys.append(ys[-1] + heights[row] + source.get("row_gap", 30))
    places = {}
    for name, box in boxes.items():
        column, row = box["at"]
        last = row + box.get("rows", 1) - 1
        places[name] = _Rect(xs[column], ys[row], widths[column], ys[last] + heights[last] - ys[row])
    return places


def _frame_space(source: Source) -> float:
    """Return the space that frames around boxes of the first column need."""
    framed = [name for group in source.get("groups", []) for name in group["boxes"]]
    return _FRAME if any(source["boxes"][name]["at"][0] == 0 for name in framed) else 0.0


def _frame_top(source: Source) -> float:
    framed = [name for group in source.get("groups", []) for name in group["boxes"]]
    return _FRAME_TITLE if any(source["boxes"][name]["at"][1] == 0 for name in framed) else 0.0


def _gap(source: Source, column: int) -> float:
    """Return the space between a column and the next one: that of the widest label in it."""
    labels = [
        width_of(line, NOTE_SIZE + 1, is_code=True)
        for arrow in source["arrows"]
        for line in (*arrow.get("above", []), *arrow.get("below", []))
        if sorted(source["boxes"][arrow[end]]["at"][0] for end in ("from", "to")) == [column, column + 1]
    ]
    return max([label + 28 for label in labels], default=_MIN_GAP) + _frame_gap(source, column)


def _frame_gap(source: Source, column: int) -> float:
    """Return the space for a frame whose edge is between a column and the next one."""
    for group in source.get("groups", []):
        inside = {source["boxes"][name]["at"][0] for name in group["boxes"]}
        if (column in inside) != (column + 1 in inside):
            return 2 * _FRAME
    return 0.0


def _width(box: Source) -> float:
    notes = [width_of(line, NOTE_SIZE) for line in box.get("lines", [])]
    return max([width_of(box["name"]), *notes]) + 2 * _PAD


def _height(box: Source) -> float:
    return 34.0 + 17 * len(box.get("lines", []))


def _box(canvas: Canvas, box: Source, place: _Rect) -> None:
    canvas.area(place.x, place.y, place.w, place.h, box.get("style", "box"))
    lines = box.get("lines", [])
    middle = place.x + place.w / 2
    y = place.y + place.h / 2 + 5 - 8.5 * len(lines)
    canvas.text(middle, y, box["name"], kind="head", anchor="middle")
    for index, line in enumerate(lines):
        canvas.text(middle, y + 17 * (index + 1), line, kind="note", anchor="middle")


def _group(canvas: Canvas, group: Source, inside: list[_Rect]) -> None:
    x, y = min(one.x for one in inside) - _FRAME, min(one.y for one in inside) - _FRAME_TITLE - 4
    right, bottom = max(one.right for one in inside) + _FRAME, max(one.bottom for one in inside) + _FRAME
    canvas.area(x, y, right - x, bottom - y, "group")
    canvas.text(x + 10, y + 19, group["name"], kind="note")


def _arrow(
    canvas: Canvas, arrow: Source, boxes: dict[str, Source], places: dict[str, _Rect], number: int
) -> None:
    start, end = places[arrow["from"]], places[arrow["to"]]
    columns = [boxes[arrow[side]]["at"][0] for side in ("from", "to")]
    if columns[0] == columns[1]:
        _vertical(canvas, arrow, start, end)
        return
    top, bottom = max(start.y, end.y), min(start.bottom, end.bottom)
    if top >= bottom:
        raise ValueError(f"no common row or column: {arrow['from']}, {arrow['to']}")
    count = arrow.get("of", 1)
    y = top + (bottom - top) * (2 * number + 1) / (2 * count)
    x1, x2 = (start.right + 3, end.x - 3) if start.x < end.x else (start.x - 3, end.right + 3)
    canvas.arrow(x1, y, x2, y, is_double=arrow.get("both", False))
    middle = (x1 + x2) / 2
    above = arrow.get("above", [])
    for index, line in enumerate(above):
        canvas.text(middle, y - 7 - LINE * (len(above) - 1 - index), line, kind="code", anchor="middle")
    for index, line in enumerate(arrow.get("below", [])):
        canvas.text(middle, y + 17 + LINE * index, line, kind="code", anchor="middle")


def _vertical(canvas: Canvas, arrow: Source, start: _Rect, end: _Rect) -> None:
    x = start.x + start.w / 2 + arrow.get("shift", 0)
    y1, y2 = (start.bottom + 3, end.y - 3) if start.y < end.y else (start.y - 3, end.bottom + 3)
    canvas.arrow(x, y1, x, y2, is_double=arrow.get("both", False))
    lines = [*arrow.get("above", []), *arrow.get("below", [])]
    for index, line in enumerate(lines):
        y = y1 + (y2 - y1) * arrow.get("label_at", 0.5) + 5 + LINE * (index - (len(lines) - 1) / 2)
        canvas.text(x + 10, y, line, kind="code")
