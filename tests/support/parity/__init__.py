# SPDX-License-Identifier: Apache-2.0
"""Sends the same bytes to nginx and to the proxy, and compares everything that they send.

``dialogue`` defines a dialogue, ``blocks`` the server blocks, ``differences`` the
declared differences and their reasons; ``kit`` plays the dialogues.
"""
