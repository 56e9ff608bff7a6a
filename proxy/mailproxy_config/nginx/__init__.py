# SPDX-License-Identifier: Apache-2.0
"""The ``mail {}`` block of an ``nginx.conf``: read, and turned into a manifest."""
