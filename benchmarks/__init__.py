# SPDX-License-Identifier: Apache-2.0
"""Measurements of the proxy and of nginx, on one machine, in one run.

``python -m benchmarks`` measures everything; with names, only that.  Nothing
in here is a test: figures are printed, and judged by people.
"""
