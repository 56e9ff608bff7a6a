# SPDX-License-Identifier: Apache-2.0
"""The mail proxy: SMTP, IMAP and POP3 in front of servers that an HTTP service chooses."""
