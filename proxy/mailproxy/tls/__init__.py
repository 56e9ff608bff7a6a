# SPDX-License-Identifier: Apache-2.0
"""TLS: contexts from directives and files, connections on non-blocking sockets.

It uses ``ssl``, and ``openssl`` for functions that ``ssl`` does not offer.
Nothing in this package waits, polls a descriptor or has timeouts.
"""
