# SPDX-License-Identifier: Apache-2.0
"""The same bytes to nginx and to the proxy, and a comparison of everything that leaves.

``dialogue`` says what is played, ``blocks`` on which servers, ``differences``
what may differ and why; ``kit`` plays it.
"""
