# SPDX-License-Identifier: Apache-2.0
"""A small mail world on loopback to try the proxy on: one user, one mailbox, three servers."""
