"""The proxy as a sidecar in other people's pods: put there by a webhook, or by hand."""
