# SPDX-License-Identifier: Apache-2.0
"""The MailProxy resource and its definition."""
