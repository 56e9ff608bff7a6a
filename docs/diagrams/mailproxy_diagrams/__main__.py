# SPDX-License-Identifier: Apache-2.0
"""Writes every diagram to ``docs/pictures``."""

from __future__ import annotations

from mailproxy_diagrams.diagram import drawings

if __name__ == "__main__":
    for path, text in drawings().items():
        path.write_text(text, encoding="utf-8")
