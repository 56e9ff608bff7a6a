# SPDX-License-Identifier: Apache-2.0
"""POP3 before login (RFC 1939)."""
