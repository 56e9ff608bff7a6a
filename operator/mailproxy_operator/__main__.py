# SPDX-License-Identifier: Apache-2.0
"""``python -m mailproxy_operator``."""

from __future__ import annotations

import sys

from mailproxy_operator.cli import main

sys.exit(main())
