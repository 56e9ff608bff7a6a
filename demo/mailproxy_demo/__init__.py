# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator local``: runs a manifest on one machine; with ``--demo``, mail servers around it.

Not part of the wheel or the images: see ``docs/decisions/0014-demo-beside-the-programs.md``.
"""
