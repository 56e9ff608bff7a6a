# SPDX-License-Identifier: Apache-2.0
"""Metrics and log.

Workers use ``metrics`` and ``log``, which import nothing slow.  Only the
supervisor uses ``aggregate`` and ``prometheus``.
"""
