# SPDX-License-Identifier: Apache-2.0
"""A proxy under traffic that changes every metric, and a Prometheus that scrapes it."""
