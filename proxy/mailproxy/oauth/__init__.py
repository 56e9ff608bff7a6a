# SPDX-License-Identifier: Apache-2.0
"""Validation of OAuth 2.0 access tokens that are JSON Web Tokens (``auth_mode jwt``).

Only workers with such a server import these modules, because PyJWT and cryptography take memory.
"""
