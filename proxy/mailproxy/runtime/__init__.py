# SPDX-License-Identifier: Apache-2.0
"""Where conversations meet sockets: the only package that does input and output on mail connections."""
