# SPDX-License-Identifier: Apache-2.0
"""Where this folder's dashboards and rules come from: ``python -m mailproxy_monitoring`` writes them anew."""
