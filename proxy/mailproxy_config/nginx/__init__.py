# SPDX-License-Identifier: Apache-2.0
"""Reads the ``mail {}`` block of an ``nginx.conf`` and converts it to a manifest."""
