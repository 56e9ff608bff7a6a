# SPDX-License-Identifier: Apache-2.0
"""One client from accept to close, on its sockets."""
