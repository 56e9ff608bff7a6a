# SPDX-License-Identifier: Apache-2.0
"""TLS towards clients: contexts from files, connections from sockets, and what a handshake settled.

One engine: ``ssl`` on non-blocking sockets, with ``openssl`` for what it does
not offer.  Nothing here waits, watches a descriptor or keeps time.
"""
