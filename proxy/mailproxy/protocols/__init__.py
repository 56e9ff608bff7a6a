# SPDX-License-Identifier: Apache-2.0
"""SMTP, IMAP and POP3 before login, towards clients and upstreams.  Nothing here does input or output."""
