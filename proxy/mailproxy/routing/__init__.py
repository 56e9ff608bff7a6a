# SPDX-License-Identifier: Apache-2.0
"""Which group of upstreams a login goes to, and which server of the group (``route``, ``upstream``)."""
