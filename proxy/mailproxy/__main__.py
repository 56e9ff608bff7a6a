# SPDX-License-Identifier: Apache-2.0
"""``python -m mailproxy`` is the command ``mailproxy``."""

from __future__ import annotations

import sys

from mailproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
