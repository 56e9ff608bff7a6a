# SPDX-License-Identifier: Apache-2.0
"""The configuration contract between the operator, which writes it, and the proxy, which reads it."""
