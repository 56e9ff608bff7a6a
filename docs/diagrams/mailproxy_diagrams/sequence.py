# SPDX-License-Identifier: Apache-2.0
"""A sequence diagram: who sends what to whom, from top to bottom."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from mailproxy_diagrams.canvas import LINE, MARGIN, NOTE_SIZE, TITLE_HEIGHT, Canvas, width_of

_HEAD_HEIGHT: Final = 52.0
_PAD: Final = 16.0
_GAP: Final = 20.0

Source = dict[str, Any]


def draw_sequence(canvas: Canvas, source: Source) -> None:
    """Draw the participants and the steps.

    Args:
        canvas: Where to draw.
        source: ``participants`` (``id``, ``name``, ``note``, ``style``) and ``steps``: ``phase`` (a heading),
            ``from``, ``to``, ``send`` (lines of the protocol) and ``note``, or ``over`` (two participants),
            ``text`` and ``style``.
    """
    columns = _columns(source)
    top = MARGIN + TITLE_HEIGHT
    y = top + _HEAD_HEIGHT
    painted: list[tuple[Source, float]] = []
    for step in source["steps"]:
        painted.append((step, y))
        y += _height(step)
    for one in source["participants"]:
        canvas.rule(columns[one["id"]], top + _HEAD_HEIGHT, columns[one["id"]], y - 8)
    for one in source["participants"]:
        _participant(canvas, one, columns[one["id"]], top)
    for step, at in painted:
        _step(canvas, step, columns, at)


def _columns(source: Source) -> dict[str, float]:
    """Return the middle of each participant's column: as close as heads and messages permit."""
    order = [one["id"] for one in source["participants"]]
    heads = {one["id"]: _head_width(one) for one in source["participants"]}
    gaps = {(a, b): (heads[a] + heads[b]) / 2 + _GAP for a, b in pairwise(order)}
    for step in source["steps"]:
        if "send" in step:
            first, last = sorted((order.index(step["from"]), order.index(step["to"])))
            between = [*pairwise(order[first : last + 1])]
            missing = _message_width(step) + 2 * _PAD - sum(gaps[one] for one in between)
            for one in between:
                gaps[one] += max(0.0, missing) / len(between)
    columns = {order[0]: MARGIN + heads[order[0]] / 2}
    for a, b in pairwise(order):
        columns[b] = columns[a] + round(gaps[a, b])
    return columns


def _head_width(one: Source) -> float:
    return max(width_of(one["name"]), width_of(one.get("note", ""), NOTE_SIZE)) + 2 * _PAD


def _message_width(step: Source) -> float:
    lines = [width_of(line, NOTE_SIZE + 1, is_code=True) for line in step["send"]]
    return max([*lines, *(width_of(line, NOTE_SIZE) for line in _notes(step))])


def _notes(step: Source) -> list[str]:
    return list(step.get("note", "").splitlines())


def _height(step: Source) -> float:
    if "phase" in step:
        return 40.0
    if "over" in step:
        return 50.0 + LINE * len(_notes(step))
    return 18.0 + LINE * len(step["send"]) + 16.0 * len(_notes(step))


def _participant(canvas: Canvas, one: Source, x: float, y: float) -> None:
    w = _head_width(one)
    canvas.area(x - w / 2, y, w, _HEAD_HEIGHT, one.get("style", "box"))
    has_note = "note" in one
    canvas.text(x, y + (22 if has_note else 31), one["name"], kind="head", anchor="middle")
    if has_note:
        canvas.text(x, y + 40, one["note"], kind="note", anchor="middle")


def _step(canvas: Canvas, step: Source, columns: dict[str, float], y: float) -> None:
    if "phase" in step:
        left, right = min(columns.values()), max(columns.values())
        canvas.area(left - 10, y + 10, right - left + 20, 24, "box")
        canvas.text(left, y + 27, step["phase"], kind="head")
    elif "over" in step:
        _band(canvas, step, columns, y)
    else:
        _message(canvas, step, columns[step["from"]], columns[step["to"]], y)


def _band(canvas: Canvas, step: Source, columns: dict[str, float], y: float) -> None:
    left, right = (columns[one] for one in step["over"])
    notes = _notes(step)
    canvas.area(left - 10, y + 8, right - left + 20, 34 + LINE * len(notes), step.get("style", "box"))
    middle = (left + right) / 2
    canvas.text(middle, y + 30, step["text"], kind="head", anchor="middle")
    for index, line in enumerate(notes):
        canvas.text(middle, y + 30 + LINE * (index + 1), line, kind="note", anchor="middle")


def _message(canvas: Canvas, step: Source, start: float, end: float, y: float) -> None:
    middle = (start + end) / 2
    lines = step["send"]
    left = middle - max(width_of(line, NOTE_SIZE + 1, is_code=True) for line in lines) / 2
    for index, line in enumerate(lines):
        canvas.text(left, y + 14 + LINE * index, line, kind="code", halo=True)
    at = y + 4 + LINE * len(lines) + 2
    canvas.arrow(start, at, end, at, is_double=step.get("both", False))
    for index, line in enumerate(_notes(step)):
        canvas.text(middle, at + 15 + 16 * index, line, kind="note", anchor="middle", halo=True)
