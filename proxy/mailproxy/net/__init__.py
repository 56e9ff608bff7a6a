# SPDX-License-Identifier: Apache-2.0
"""Sockets: which ones a configuration needs, how they are opened, accepted on, relayed between and closed."""
