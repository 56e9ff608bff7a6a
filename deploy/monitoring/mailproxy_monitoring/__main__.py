# SPDX-License-Identifier: Apache-2.0
"""Writes every generated file of this directory, and the chart's copies."""

from __future__ import annotations

from mailproxy_monitoring.generated_files import generated_files

if __name__ == "__main__":
    for path, content in generated_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
