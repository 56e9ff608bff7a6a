"""Where this folder's dashboards and rules come from: ``python -m mailproxy_monitoring`` writes them anew."""
