# SPDX-License-Identifier: Apache-2.0
"""Limits of sessions and logins (``limit_conn``, ``limit_req``, ``limit_preauth``), counted by all workers.

Every limit fails open: where something cannot be counted, the client is let in.
"""
