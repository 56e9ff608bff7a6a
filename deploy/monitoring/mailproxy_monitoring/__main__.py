# SPDX-License-Identifier: Apache-2.0
"""Writes every generated file of this folder, and the chart's copies, anew."""

from __future__ import annotations

from mailproxy_monitoring.pages import pages

if __name__ == "__main__":
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
