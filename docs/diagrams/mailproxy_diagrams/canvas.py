# SPDX-License-Identifier: Apache-2.0
"""An SVG with the styles of all diagrams, for light and dark pages."""

from __future__ import annotations

from html import escape
from typing import Final

MARGIN: Final = 24.0
TITLE_HEIGHT: Final = 34.0
SIZE: Final = 14.0
"""Font size of texts in pixels; notes are smaller."""
NOTE_SIZE: Final = 12.0
LINE: Final = 18.0
"""Distance of lines of text."""

STYLES: Final = ("box", "own", "tls", "plain", "relay", "bad", "group")
"""Styles of areas: neutral, MailProxy, encrypted or good, not encrypted, relayed bytes, a fault, a frame."""

_LIGHT: Final = {
    "page": ("#ffffff", "#d0d7de"),
    "box": ("#f6f8fa", "#8c959f"),
    "own": ("#ddf4ff", "#0969da"),
    "tls": ("#dafbe1", "#1a7f37"),
    "plain": ("#fff8c5", "#9a6700"),
    "relay": ("#fbefff", "#8250df"),
    "bad": ("#ffebe9", "#d1242f"),
    "group": ("#ffffff", "#8c959f"),
    "text": ("#1f2328", "#59636e"),
}
_DARK: Final = {
    "page": ("#0d1117", "#30363d"),
    "box": ("#161b22", "#6e7681"),
    "own": ("#10243e", "#58a6ff"),
    "tls": ("#12261e", "#3fb950"),
    "plain": ("#2b2411", "#d29922"),
    "relay": ("#251a36", "#a371f7"),
    "bad": ("#2d1619", "#f85149"),
    "group": ("#0d1117", "#6e7681"),
    "text": ("#e6edf3", "#9198a1"),
}
_NARROW: Final = frozenset("iljtfrI.,:;'|!()[]{}/- ")
_WIDE: Final = frozenset("mwMW@%…—")


def width_of(text: str, size: float = SIZE, *, is_code: bool = False) -> float:
    """Return the width of a text in pixels: an estimate that is too large rather than too small.

    The reader's browser chooses the font, so the real width is not known here.
    """
    if is_code:
        return len(text) * size * 0.615
    units = sum(0.36 if char in _NARROW else 0.92 if char in _WIDE else _letter(char) for char in text)
    return units * size * 1.04


def _letter(char: str) -> float:
    return 0.72 if char.isupper() else 0.6


class Canvas:
    """Collects shapes and texts; the picture is as large as they need."""

    def __init__(self, title: str, alt: str) -> None:
        self.title = title
        self._alt = alt
        self._parts: list[str] = []
        self._right = MARGIN + width_of(title, 17)
        self._bottom = 0.0
        self.text(MARGIN, MARGIN + 12, title, kind="title")

    def area(self, x: float, y: float, w: float, h: float, style: str) -> None:
        """Draw a rectangle with round corners, in one of ``STYLES``."""
        if style not in STYLES:
            raise ValueError(f"no such style: {style}")
        dashes = ' stroke-dasharray="5 4"' if style == "group" else ""
        self._parts.append(
            f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6"{dashes}/>'
        )
        self._extend(x + w, y + h)

    def text(
        self, x: float, y: float, text: str, *, kind: str = "text", anchor: str = "start", halo: bool = False
    ) -> None:
        """Write one line; its baseline is at y.

        Args:
            x: The start, middle or end of the line, by ``anchor``.
            y: The baseline.
            text: The line.
            kind: ``title``, ``head``, ``text``, ``code`` or ``note``.
            anchor: ``start``, ``middle`` or ``end``.
            halo: Whether to hide lines of the page behind the text.
        """
        name = f"{kind} halo" if halo else kind
        self._parts.append(
            f'<text class="{name}" x="{x:g}" y="{y:g}" text-anchor="{anchor}" xml:space="preserve">'
            f"{escape(text, quote=False)}</text>"
        )
        shift = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        size = 17 if kind == "title" else SIZE
        self._extend(x + shift * width_of(text, size, is_code=kind == "code"), y + 4)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, *, is_double: bool = False) -> None:
        """Draw a line with an arrow at its end, or at both ends."""
        start = ' marker-start="url(#arrow)"' if is_double else ""
        self._parts.append(
            f'<path class="line" d="M{x1:g} {y1:g}L{x2:g} {y2:g}" marker-end="url(#arrow)"{start}/>'
        )
        self._extend(max(x1, x2), max(y1, y2))

    def rule(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a thin dashed line."""
        self._parts.append(f'<path class="rule" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>')
        self._extend(max(x1, x2), max(y1, y2))

    def svg(self) -> str:
        """Return the picture."""
        width, height = round(self._right + MARGIN), round(self._bottom + MARGIN)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
                f' height="{height}" role="img" aria-labelledby="title alt">',
                f'<title id="title">{escape(self.title, quote=False)}</title>',
                f'<desc id="alt">{escape(self._alt, quote=False)}</desc>',
                f"<style>\n{_css()}\n</style>",
                '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
                ' markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L10 5L0 10z"/>'
                "</marker></defs>",
                f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
                *self._parts,
                "</svg>",
                "",
            ]
        )

    def _extend(self, right: float, bottom: float) -> None:
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)


def _css() -> str:
    fonts = [
        "text { font-family: -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif; }",
        ".title { font-size: 17px; } .title, .head { font-weight: 600; }",
        f".head, .text {{ font-size: {SIZE:g}px; }} .note {{ font-size: {NOTE_SIZE:g}px; }}",
        f".code {{ font-size: {NOTE_SIZE + 1:g}px;"
        " font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace; }",
        ".halo { paint-order: stroke; stroke-width: 5; stroke-linejoin: round; }",
        ".line { fill: none; stroke-width: 1.6; } .rule { stroke-width: 1; stroke-dasharray: 4 4; }",
    ]
    dark = "\n".join(f"  {line}" for line in _colours(_DARK))
    return "\n".join([*fonts, *_colours(_LIGHT), f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"])


def _colours(theme: dict[str, tuple[str, str]]) -> list[str]:
    text, dim = theme["text"]
    areas = [f".{name} {{ fill: {theme[name][0]}; stroke: {theme[name][1]}; }}" for name in ("page", *STYLES)]
    return [
        f".title, .head, .text, .code {{ fill: {text}; }} .note, .tip {{ fill: {dim}; }}",
        f".line, .rule {{ stroke: {dim}; }} .halo {{ stroke: {theme['page'][0]}; }}",
        *areas,
    ]
