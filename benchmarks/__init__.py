# SPDX-License-Identifier: Apache-2.0
"""Measurements of the proxy, nginx, Dovecot and HAProxy, on one machine, in one run.

``python -m benchmarks`` runs the standard measurements; with names, only those
(``benchmarks/README.md`` lists them).  Nothing in here is a test: figures are
printed, and judged by people.
"""
