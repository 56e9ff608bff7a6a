# SPDX-License-Identifier: Apache-2.0
"""The proxy as a sidecar in other people's pods: put there by a webhook, or by hand."""
