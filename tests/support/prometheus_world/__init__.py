# SPDX-License-Identifier: Apache-2.0
"""A proxy to which everything happens that is counted, and a Prometheus that watches."""
