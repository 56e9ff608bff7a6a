# SPDX-License-Identifier: Apache-2.0
"""Logins that the proxy decides about with a file of users and password hashes (``auth_mode static``)."""
