# SPDX-License-Identifier: Apache-2.0
"""OAuth 2.0 access tokens: those of clients (``auth_mode jwt``), and the proxy's own (``proxy_auth_token``).

``access_token`` and what it needs validate JSON Web Tokens; ``token_source`` requests tokens for logins
at upstreams.  Only workers whose configuration needs them import these modules, because their libraries
take time and memory.
"""
