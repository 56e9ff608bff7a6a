# SPDX-License-Identifier: Apache-2.0
"""SMTP before login: submission, and relaying up to the first recipient (RFC 5321, RFC 4954)."""
