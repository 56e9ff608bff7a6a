# SPDX-License-Identifier: Apache-2.0
"""IMAP before login (RFC 9051, RFC 3501)."""
