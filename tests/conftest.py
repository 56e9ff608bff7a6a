# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: none of them times anything, whatever else the machine is doing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
