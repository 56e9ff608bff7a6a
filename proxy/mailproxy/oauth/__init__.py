# SPDX-License-Identifier: Apache-2.0
"""Access tokens for logins at upstreams (``proxy_auth_token``): requests to a token service, and a cache.

Imported only by workers whose configuration has the directive: ``aiohttp`` costs time and memory.
"""
