# SPDX-License-Identifier: Apache-2.0
"""Generates the dashboards and rules of this directory; run ``python -m mailproxy_monitoring``."""
