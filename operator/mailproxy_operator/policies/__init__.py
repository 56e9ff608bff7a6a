# SPDX-License-Identifier: Apache-2.0
"""``BackendTLSPolicy`` of the Gateway API: TLS settings for the Service that the mail servers are."""
